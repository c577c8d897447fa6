-- Delete entries beyond a stream's size or TTL, or the whole stream if it is idle (see streams/redis.py).
--
-- KEYS: meta, log, idempotency keys. ARGV: the time or ''; history size; history TTL in seconds; the TTL of an idle
--   stream's meta hash in seconds; the maximum age of a young entry in seconds; the maximum size of young entries
--   beyond the history size in bytes.
-- Returns the number of deleted entries, or the number of deleted keys of an idle stream.

local now, size, ttl, idle = clock(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local stored = redis.call('HMGET', KEYS[1], 't', 'a')
local tail, made, kept = tonumber(stored[1]), tonumber(stored[2]), redis.call('XLEN', KEYS[2])
if not tail then return 0 end
local low = tail - kept + 1
local alive = first_kept(KEYS[2], low, tail, now, size, ttl, tonumber(ARGV[5]), tonumber(ARGV[6]))
if alive > low then
  redis.call('HSET', KEYS[1], 'z', text(created(KEYS[2], alive - 1)))
  redis.call('XTRIM', KEYS[2], 'MINID', alive .. '-0')
  return alive - low
end
if kept == 0 and made and made <= now - idle then return redis.call('DEL', KEYS[1], KEYS[3]) end
return 0
