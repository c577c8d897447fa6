-- Revoke all sessions that match a condition and were authenticated until now (sessions/redis.py).
--
-- KEYS: the key of the condition. ARGV: now or ''; how many milliseconds to remember the revocation; 0: not at all.
-- Returns the time.

local now = text(clock(ARGV[1]))
if tonumber(ARGV[2]) > 0 then redis.call('SET', KEYS[1], now, 'PX', ARGV[2]) end
return now
