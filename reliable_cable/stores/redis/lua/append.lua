-- Number, store, trim and announce messages of one or more streams (see streams/redis.py). Either all are stored, or
-- none.
--
-- KEYS: for each stream, its meta hash, its log (a Redis stream with the ids `<offset>-0`) and its idempotency keys (a
--   hash); then the lineage record.
-- ARGV: the lineage; the prefix of new epochs; the time or ''; a unique id of this append; the seconds since the first
--   attempt, or '' in the first attempt; the maximum age of a young entry in seconds; the maximum size of young entries
--   beyond the history size in bytes; the number of streams; then for each stream: its name, its channel, its history
--   size, its history TTL in seconds, and the TTL of its meta hash in seconds; then for each message: the number of its
--   stream, its data, exclude and idempotency key.
-- Returns the epoch and offset of each message in one text, which redis-py reads faster than arrays. Returns
--   'uncertain' if an earlier attempt may or may not have stored the messages. Returns 'late' if this is the first
--   attempt, but Redis has already executed a retry. This may happen after Redis did not respond for some time.
--
-- The fields of the meta hash: n name, e epoch, t tail, r lineage of the data in which the epoch began, a time of the
--   tail's entry, or of the last call to forget, z time of the newest trimmed entry, k whether idempotency keys were
--   ever used, b bytes of all entries so far, l ids of recently retried appends, f see forget.lua.

-- The maximum length of the remembered ids of retried appends, in characters. This is enough for all appends that are
-- retried when Redis does not respond for some time.
local REMEMBERED = 8192

-- The maximum time, in seconds, by which Redis's clock may be set back between two attempts of an append.
local STEP_BACK = 10
-- The maximum time, in seconds, by which Redis's clock may be set forward. This limits how much of a long log is
-- searched.
local STEP_FORWARD = 600

local lineage, fresh, now, append = require_lineage(), ARGV[2], clock(ARGV[3]), ARGV[4]
local elapsed = tonumber(ARGV[5])
local young, most, count = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local first_message = 9 + 5 * count
local streams = {}

for number = 1, count do
  local meta, log, keys = KEYS[3 * number - 2], KEYS[3 * number - 1], KEYS[3 * number]
  local at = 4 + 5 * number
  local stored = redis.call('HMGET', meta, 'e', 't', 'r', 'a', 'z', 'k', 'l', 'b')
  local stream = {
    meta = meta, log = log, keys = keys, name = ARGV[at], channel = ARGV[at + 1], size = tonumber(ARGV[at + 2]),
    ttl = tonumber(ARGV[at + 3]), idle = ARGV[at + 4],
    epoch = stored[1], tail = tonumber(stored[2]), made = tonumber(stored[4]), trimmed = tonumber(stored[5]),
    keyed = stored[6] == '1', kept = 0, own = {}, earlier = {}, repeated = stored[7] or '',
    bytes = tonumber(stored[8]) or 0,
  }
  if not elapsed and string.find(stream.repeated, append, 1, true) then return 'late' end
  if stream.epoch and stored[3] == lineage then
    stream.kept = redis.call('XLEN', log)
    -- If the log is empty, all its entries have expired.
    if stream.kept == 0 and stream.tail > 0 then stream.trimmed = stream.made end
  else
    -- The stream is new, or its epoch began in another lineage. The data may then lack the last offsets of the epoch.
    stream.begins = true
    stream.epoch, stream.tail, stream.made, stream.trimmed, stream.keyed = fresh .. 'x' .. number, 0, 0, nil, false
    stream.bytes = 0
  end
  stream.before = stream.tail
  streams[number] = stream
end

-- Return the offset of the message with an idempotency key, in this append or in a kept entry; nil if there is none.
local function offset_of_key(stream, key)
  if key == '' then return nil end
  local offset = stream.own[key] or (stream.keyed and tonumber(redis.call('HGET', stream.keys, key)))
  if not offset or offset > stream.before then return offset end
  local entry = redis.call('XRANGE', stream.log, offset .. '-0', offset .. '-0')[1]
  local kept = entry and entry[2][10] == key and offset > stream.before - stream.size
  return kept and tonumber(entry[2][4]) > now - stream.ttl and offset or nil
end

-- Find the entries that an earlier attempt of this append stored in a stream, and record their offsets by the numbers
-- of the messages. Entries are identified by their marks, not by their times, because the clock may be set between two
-- attempts.
local function find_earlier(stream)
  if stream.begins then return end
  local last, missing = '+', 0
  for at = first_message, #ARGV, 4 do
    if streams[tonumber(ARGV[at])] == stream then missing = missing + 1 end
  end
  repeat
    local page = redis.call('XREVRANGE', stream.log, last, '-', 'COUNT', 100)
    for _, entry in ipairs(page) do
      local mark, made = entry[2][8], tonumber(entry[2][4])
      if string.sub(mark, 1, #append + 1) == append .. '.' then
        stream.earlier[tonumber(string.sub(mark, #append + 2))] = tonumber(string.match(entry[1], '^%d+'))
        missing = missing - 1
      end
      if missing == 0 or made < now - elapsed - STEP_FORWARD then return end
      last = '(' .. entry[1]
    end
  until #page < 100
  -- If an entry of the same age was trimmed, the entries of the earlier attempt may have been trimmed, too.
  stream.unknown = stream.trimmed and stream.trimmed > now - elapsed - STEP_BACK
end

if elapsed then
  for _, stream in ipairs(streams) do find_earlier(stream) end
  for at = first_message, #ARGV, 4 do
    local stream, message = streams[tonumber(ARGV[at])], (at - first_message) / 4 + 1
    if stream.unknown and not stream.earlier[message] and not offset_of_key(stream, ARGV[at + 3]) then
      return 'uncertain'
    end
  end
end

local function add(stream, data, exclude, key, mark)
  if stream.begins then
    redis.call('DEL', stream.meta, stream.log, stream.keys)
    stream.begins = false
  end
  local offset = stream.tail + 1
  stream.tail, stream.kept, stream.made, stream.changed = offset, stream.kept + 1, math.max(now, stream.made), true
  stream.bytes = add_entry(stream.log, offset, data, text(stream.made), exclude, mark, key, stream.bytes)
  if key ~= '' then
    redis.call('HSET', stream.keys, key, offset)
    stream.own[key], stream.keyed = offset, true
  end
  publish(stream.channel, 'm' .. stream.epoch .. ' ' .. offset .. ' ' .. exclude .. '\n' .. data)
  return offset
end

local answer = {}
for at = first_message, #ARGV, 4 do
  local stream, message, key = streams[tonumber(ARGV[at])], (at - first_message) / 4 + 1, ARGV[at + 3]
  local offset = stream.earlier[message] or offset_of_key(stream, key)
    or add(stream, ARGV[at + 1], ARGV[at + 2], key, append .. '.' .. message)
  answer[message] = stream.epoch .. ' ' .. string.format('%.0f', offset)
end

-- Delete the entries before an offset, and their idempotency keys.
local function trim(stream, low)
  stream.trimmed = created(stream.log, low - 1) or stream.trimmed
  if stream.keyed then
    for _, entry in ipairs(redis.call('XRANGE', stream.log, '-', (low - 1) .. '-0')) do
      local key = entry[2][10]
      if key and redis.call('HGET', stream.keys, key) == string.match(entry[1], '^%d+') then
        redis.call('HDEL', stream.keys, key)
      end
    end
  end
  redis.call('XTRIM', stream.log, 'MINID', low .. '-0')
  stream.kept = stream.tail - low + 1
end

for _, stream in ipairs(streams) do
  if stream.changed then
    -- Trim only when the tail passes a multiple of 16. Reads for returning clients leave out older entries anyway.
    if math.floor(stream.tail / 16) > math.floor(stream.before / 16) then
      local low = stream.tail - stream.kept + 1
      local kept = first_kept(stream.log, low, stream.tail, now, stream.size, stream.ttl, young, most)
      if kept > low then trim(stream, kept) end
    end
    redis.call(
      'HSET', stream.meta, 'n', stream.name, 'e', stream.epoch, 't', stream.tail, 'r', lineage, 'a', text(stream.made),
      'z', stream.trimmed and text(stream.trimmed) or '', 'k', stream.keyed and '1' or '',
      'b', string.format('%.0f', stream.bytes)
    )
    redis.call('EXPIRE', stream.meta, stream.idle)
    redis.call('PEXPIRE', stream.log, math.ceil(math.max(stream.ttl, young) * 1000))
    if stream.keyed then redis.call('PEXPIRE', stream.keys, math.ceil(stream.ttl * 1000)) end
  end
  if elapsed then redis.call('HSET', stream.meta, 'l', string.sub(stream.repeated .. append .. ' ', -REMEMBERED)) end
end

return table.concat(answer, ' ')
