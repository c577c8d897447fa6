-- Return the members of a stream (see presence/redis.py).
--
-- ARGV, from 8: '1' to return the members, or '0' for only their number; '1' to include members whose sessions have all
--   expired.
-- Returns the incarnation or '', the number of members, and the id and value of each member as in the members hash.

local wanted, overdue = ARGV[8] == '1', ARGV[9] == '1'
local over, gone = {}, {}
local total = redis.call('HLEN', members)
if not overdue then
  for _, session in ipairs(redis.call('ZRANGEBYSCORE', expiries, '-inf', text(now))) do
    local id = redis.call('HGET', sessions, session)
    if id then over[id] = (over[id] or 0) + 1 end
  end
  for id, count in pairs(over) do
    if count >= (find(id) or math.huge) then
      gone[id] = true
      total = total - 1
    end
  end
end
local found = {}
if wanted then
  local all = redis.call('HGETALL', members)
  for at = 1, #all, 2 do
    if not gone[all[at]] then
      found[#found + 1] = all[at]
      found[#found + 1] = all[at + 1]
    end
  end
end
return { incarnation() or '', total, found }
