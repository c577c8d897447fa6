-- Revoke all sessions of a kind that were authenticated until now (sessions/redis.py).
--
-- KEYS: the kind's key. ARGV: now or ''; the milliseconds for which that is remembered, 0: not at all.
-- Returns the time.

local now = text(clock(ARGV[1]))
if tonumber(ARGV[2]) > 0 then redis.call('SET', KEYS[1], now, 'PX', ARGV[2]) end
return now
