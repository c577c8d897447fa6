-- Add a session of an id, or refresh it (presence/redis.py).
--
-- ARGV, from 8: session; id; info; '1' if its holder knows that it was there before.
-- Returns the events that tell of a change, each as 'j' or 'l', id, info. Of a session that was there before, the join
-- tells of none unless its leave is remembered: the data were lost, and nobody came.

local session, id, info, known = ARGV[8], ARGV[9], ARGV[10], ARGV[11] == '1'
local events = {}
begin()
local former = redis.call('HGET', sessions, session)
if former and former ~= id then
  events[1] = remove(session)
  former = nil
end
local count, order = find(id)
if count then
  keep(id, former and count or count + 1, order, info)
else
  keep(id, 1, redis.call('HINCRBY', meta, 'n', 1), info)
  local had_left = redis.call('ZREM', left, id) == 1
  local event = announce('j', id, info)
  if had_left or not known then events[#events + 1] = event end
end
redis.call('HSET', sessions, session, id)
redis.call('ZADD', expiries, text(now + ttl), session)
settle()
return events
