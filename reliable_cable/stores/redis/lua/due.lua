-- Find the streams in which the time of a session is over (presence/redis.py).
--
-- KEYS: the index of all streams; the sweeps, a hash of `at` (when any process last called this) and `grace` (until
--   when no session expires).
-- ARGV: now or ''; the greatest number of streams; PRESENCE_TTL; after how many seconds without a call an outage is
--   assumed.
-- Returns their names, those that are due longest first.
--
-- Each process calls this several times within PRESENCE_TTL. If none did for that long, none could refresh its members
-- either. Then no session expires for one PRESENCE_TTL, whichever process comes back first.

local index, sweeps, now = KEYS[1], KEYS[2], clock(ARGV[1])
local ttl, outage = tonumber(ARGV[3]), tonumber(ARGV[4])
if redis.call('EXISTS', index) == 0 then
  redis.call('DEL', sweeps)
  return {}
end
local known = redis.call('HMGET', sweeps, 'at', 'grace')
local at, grace = tonumber(known[1] or now), tonumber(known[2] or 0)
if now - at > outage then grace = now + ttl end
redis.call('HSET', sweeps, 'at', text(now), 'grace', text(grace))
redis.call('PEXPIRE', sweeps, redis.call('PTTL', index))
if now < grace then return {} end
return redis.call('ZRANGEBYSCORE', index, '-inf', text(now), 'LIMIT', 0, ARGV[2])
