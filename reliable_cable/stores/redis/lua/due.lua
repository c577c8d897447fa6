-- Find the streams with expired sessions (see presence/redis.py).
--
-- KEYS: the index of all streams; the sweeps, a hash with `at` (the time of the last call by any process, or of the
--   first join since the hash was deleted) and `grace` (the time before which no session expires).
-- ARGV: the time or ''; the maximum number of streams to return; PRESENCE_TTL; the seconds without a call after which
--   an outage is assumed.
-- Returns the names of the streams, in the order of their earliest expiry.
--
-- Each process calls this several times within PRESENCE_TTL. After a long time without a call, no process could refresh
-- its members either. So no session expires for one PRESENCE_TTL, in which all processes can refresh their members. The
-- same applies if the time of the last call is not known, because servers of earlier releases do not record the first
-- join.

local index, sweeps, now = KEYS[1], KEYS[2], clock(ARGV[1])
local ttl, outage = tonumber(ARGV[3]), tonumber(ARGV[4])
if redis.call('EXISTS', index) == 0 then
  redis.call('DEL', sweeps)
  return {}
end
local known = redis.call('HMGET', sweeps, 'at', 'grace')
local at, grace = tonumber(known[1] or -math.huge), tonumber(known[2] or 0)
if now - at > outage then grace = now + ttl end
redis.call('HSET', sweeps, 'at', text(now), 'grace', text(grace))
redis.call('PEXPIRE', sweeps, redis.call('PTTL', index))
if now < grace then return {} end
return redis.call('ZRANGEBYSCORE', index, '-inf', text(now), 'LIMIT', 0, ARGV[2])
