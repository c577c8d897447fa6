-- Tell who left lately and is not back (presence/redis.py).
--
-- ARGV, from 8: the number of seconds.
-- Returns their ids, in the order in which they left.

return redis.call('ZRANGEBYSCORE', left, text(now - math.min(tonumber(ARGV[8]), memory)), '+inf')
