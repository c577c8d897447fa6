-- Remove expired sessions of a stream (see presence/redis.py).
--
-- ARGV, from 8: the maximum number of sessions to remove.
-- Returns the resulting events, in the format of presence_join.

local events = {}
for _, session in ipairs(redis.call('ZRANGEBYSCORE', expiries, '-inf', text(now), 'LIMIT', 0, ARGV[8])) do
  events[#events + 1] = remove(session)
end
finish()
return events
