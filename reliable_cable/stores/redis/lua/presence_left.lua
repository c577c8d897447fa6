-- Return the ids that have left within a time and have not joined again (see presence/redis.py).
--
-- ARGV, from 8: the time in seconds, until now.
-- Returns the ids in the order of their leaves.

return redis.call('ZRANGEBYSCORE', left, text(now - math.min(tonumber(ARGV[8]), memory)), '+inf')
