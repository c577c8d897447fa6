-- Remove sessions whose time is over (presence/redis.py).
--
-- ARGV, from 8: the greatest number of sessions.
-- Returns the events that this caused, as presence_join.

local events = {}
for _, session in ipairs(redis.call('ZRANGEBYSCORE', expiries, '-inf', text(now), 'LIMIT', 0, ARGV[8])) do
  events[#events + 1] = remove(session)
end
settle()
return events
