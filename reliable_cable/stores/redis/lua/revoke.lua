-- Revoke all sessions that match a condition and were authenticated before now (see sessions/redis.py).
--
-- KEYS: the key of the condition. ARGV: the time or ''; how long, in milliseconds, to remember the revocation, or 0 to
--   remember nothing.
-- Returns the time of the revocation.

local now = text(clock(ARGV[1]))
if tonumber(ARGV[2]) > 0 then redis.call('SET', KEYS[1], now, 'PX', ARGV[2]) end
return now
