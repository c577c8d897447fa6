-- Find the streams in which the time of a session is over (presence/redis.py).
--
-- KEYS: the index of all streams. ARGV: now or ''; the greatest number of streams.
-- Returns their names, those that are due longest first.

return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', text(clock(ARGV[1])), 'LIMIT', 0, ARGV[2])
