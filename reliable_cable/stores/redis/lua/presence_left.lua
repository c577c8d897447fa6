-- Return the ids that left in the last seconds and did not join again (see presence/redis.py).
--
-- ARGV, from 8: the number of seconds.
-- Returns the ids in the order of their leaves.

return redis.call('ZRANGEBYSCORE', left, text(now - math.min(tonumber(ARGV[8]), memory)), '+inf')
