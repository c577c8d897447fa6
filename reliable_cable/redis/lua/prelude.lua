-- Before each script: what several of them need.

-- Seconds since 1970: what a test's clock says, else what Redis's own clock says.
local function clock(given)
  if given ~= '' then return tonumber(given) end
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end

-- Numbers as text, without the exponents that tostring() makes of large ones.
local function text(number)
  return string.format('%.6f', number)
end

-- When the entry at an offset of a log was made; entries are d, data, c, created, x, exclude, u, append[, k, key].
local function created(log, offset)
  local found = redis.call('XRANGE', log, offset .. '-0', offset .. '-0')
  return found[1] and tonumber(found[1][2][4])
end

-- The first offset from low to tail whose entry was made at or after a time (after it, if strict); tail + 1 if none.
local function first_since(log, low, tail, time, strict)
  local last, middle = tail + 1, low -- mostly it is the oldest one
  while low < last do
    local made = created(log, middle) or 0
    if made > time or (made == time and not strict) then last = middle else low = middle + 1 end
    middle = math.floor((low + last) / 2)
  end
  return low
end

