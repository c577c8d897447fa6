-- Store and announce messages of a durable stream that the model store has numbered (see streams/durable.py).
--
-- KEYS: meta, log. ARGV: channel; history size; history TTL in seconds; the TTL of an idle stream's meta hash in
--   seconds; the maximum age of a young entry in seconds; the maximum size of young entries beyond the history size in
--   bytes; epoch; then for each message: offset, data, exclude.
-- The log is the hot tail of the stream. It has no holes, because a message after a hole replaces the whole log. If the
-- log already has a message, the message is only announced. The hot tail is not bound to a lineage (r is ''), because
-- the tables of the database are authoritative.

local channel, size, ttl, idle = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local young, most, epoch = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7]
local now = clock('')
local stored = redis.call('HMGET', KEYS[1], 'e', 't', 'b')
local tail, bytes = stored[1] == epoch and tonumber(stored[2]), tonumber(stored[3]) or 0
local before = tail
for at = 8, #ARGV, 3 do
  local offset, data, exclude = tonumber(ARGV[at]), ARGV[at + 1], ARGV[at + 2]
  if not tail or offset > tail + 1 then
    redis.call('DEL', KEYS[2])
    tail = offset - 1
  end
  if offset == tail + 1 then
    bytes = add_entry(KEYS[2], offset, data, text(now), exclude, '', '', bytes)
    tail = offset
  end
  publish(channel, 'm' .. epoch .. ' ' .. offset .. ' ' .. exclude .. '\n' .. data)
end
if not before or math.floor(tail / 16) > math.floor(before / 16) then
  local low = tail - redis.call('XLEN', KEYS[2]) + 1
  local kept = first_kept(KEYS[2], low, tail, now, size, ttl, young, most)
  if kept > low then redis.call('XTRIM', KEYS[2], 'MINID', kept .. '-0') end
end
redis.call('HSET', KEYS[1], 'e', epoch, 't', tail, 'r', '', 'b', string.format('%.0f', bytes))
redis.call('EXPIRE', KEYS[1], idle)
redis.call('PEXPIRE', KEYS[2], math.ceil(math.max(ttl, young) * 1000))
