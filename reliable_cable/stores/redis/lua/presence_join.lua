-- Add a session of a member, or refresh it (see presence/redis.py).
--
-- ARGV, from 8: the session; the id; the info; '1' if the session has joined before; the session that it replaces, or
--   ''.
-- Returns the resulting events, each as 'j' or 'l', the id and the info. If the session has joined before and is
-- missing because data were lost, its join is announced. The join is returned only if a leave of the id is remembered.

local session, id, info, known = ARGV[8], ARGV[9], ARGV[10], ARGV[11] == '1'
local replaced = ARGV[12]
local events = {}
begin()
if redis.call('HGET', sessions, replaced) == id and redis.call('HEXISTS', sessions, session) == 0 then
  dequeue(session, id)
  rename(replaced, session, id)
end
local former = redis.call('HGET', sessions, session)
if former and former ~= id then
  events[1] = remove(session)
  former = nil
end
local count, order, shown = find(id)
-- A server of an earlier release may have removed this session, but not its info.
if not (count and former) then dequeue(session, id) end
local number = queued(session)
if count and not former then
  keep(id, count + 1, order, shown)
  enqueue(session, id, info)
elseif count and number then
  redis.call('HSET', infos, session, number .. ' ' .. info)
elseif count then
  keep(id, count, order, info)
else
  keep(id, 1, redis.call('HINCRBY', meta, 'n', 1), info)
  local had_left = redis.call('ZREM', left, id) == 1
  local event = announce('j', id, info)
  if had_left or not known then events[#events + 1] = event end
end
redis.call('HSET', sessions, session, id)
redis.call('ZADD', expiries, text(now + ttl), session)
finish()
return events
