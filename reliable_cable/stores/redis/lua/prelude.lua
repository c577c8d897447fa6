-- Before each script: what several of them need.

-- Return the lineage of the data, ARGV[1]. Fail if it is not the recorded one any more: then the connection was opened
-- to other data. The last of KEYS is the record (lineage.lua).
local function require_lineage()
  if redis.call('HGET', KEYS[#KEYS], 'token') ~= ARGV[1] then
    error('DATAMOVED the connection was opened to other data')
  end
  return ARGV[1]
end

-- Fail on a replica, which would publish to its own subscribers only. It refuses this write, which changes nothing.
local function require_primary()
  redis.call('HDEL', KEYS[#KEYS], '')
end

-- Return whether a stream exists: it has an epoch that is bound to this lineage. The hot tail of a durable stream is
-- bound to none, because the tables of the model are authoritative.
local function exists(epoch, bound, lineage)
  return epoch and (bound == '' or bound == lineage)
end

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

-- About how many bytes Redis needs for an entry besides its data.
local ENTRY_SIZE = 100

-- Add an entry to a log. `before` is the number of bytes of all entries before it. Return that number with the new
-- entry. Servers of earlier releases find fields by their position, so add new fields at the end.
local function add_entry(log, offset, data, made, exclude, mark, key, before)
  redis.call(
    'XADD', log, offset .. '-0', 'd', data, 'c', made, 'x', exclude, 'u', mark, 'k', key,
    'b', string.format('%.0f', before)
  )
  return before + #data + ENTRY_SIZE
end

local function entry_at(log, offset)
  local found = redis.call('XRANGE', log, offset .. '-0', offset .. '-0')[1]
  return found and found[2]
end

-- When the entry at an offset of a log was made.
local function created(log, offset)
  local entry = entry_at(log, offset)
  return entry and tonumber(entry[4])
end

-- The number of bytes of all entries before the one at an offset; -infinity if an earlier release added that entry.
local function bytes_before(log, offset)
  local entry = entry_at(log, offset)
  return entry and tonumber(entry[12]) or -math.huge
end

-- The first offset from low to tail for which a test holds; tail + 1 if there is none. The test must also hold for all
-- later offsets.
local function first_where(low, tail, holds)
  local last, middle = tail + 1, low -- mostly it is the oldest one
  while low < last do
    if holds(middle) then last = middle else low = middle + 1 end
    middle = math.floor((low + last) / 2)
  end
  return low
end

-- The first offset from low to tail whose entry was made at or after a time (after it, if strict); tail + 1 if none.
local function first_since(log, low, tail, time, strict)
  return first_where(low, tail, function(offset)
    local made = created(log, offset) or 0
    return made > time or (made == time and not strict)
  end)
end

-- The first offset that a log must keep. Entries past the size or the time are not kept, except those younger than
-- `young` seconds, up to `most` bytes of them beyond the size.
local function first_kept(log, low, tail, now, size, ttl, young, most)
  local alive = first_since(log, low, tail, now - math.max(ttl, young), true)
  local sized = tail - size + 1
  if sized <= alive then return alive end
  local limit = bytes_before(log, sized) - most
  local stays = first_since(log, alive, sized - 1, now - young, true)
  return first_where(stays, sized - 1, function(offset) return bytes_before(log, offset) >= limit end)
end

