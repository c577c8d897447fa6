-- Store the time of a revocation (see sessions/redis.py).
--
-- KEYS: the key of the condition. ARGV: the time or ''; the TTL of the revocation in milliseconds, or 0 to store
--   nothing.
-- Returns the time of the revocation.

local now = text(clock(ARGV[1]))
if tonumber(ARGV[2]) > 0 then redis.call('SET', KEYS[1], now, 'PX', ARGV[2]) end
return now
