-- Remove expired sessions of a stream (see presence/redis.py).
--
-- ARGV, from 8: the most sessions to remove.
-- Returns the events that this caused, in the format of presence_join.

local events = {}
for _, session in ipairs(redis.call('ZRANGEBYSCORE', expiries, '-inf', text(now), 'LIMIT', 0, ARGV[8])) do
  events[#events + 1] = remove(session)
end
finish()
return events
