-- Renew the TTL of sessions (see presence/redis.py).
--
-- ARGV, from 8: the sessions. There are none if only the incarnation is needed.
-- Returns the incarnation, and the sessions that the stream does not have.

local given, unknown, deadline = begin(), {}, text(now + ttl)
for start = 8, #ARGV, 1000 do
  local stop, known = math.min(start + 999, #ARGV), {}
  for number, score in ipairs(redis.call('ZMSCORE', expiries, unpack(ARGV, start, stop))) do
    local session = ARGV[start + number - 1]
    if score then
      known[#known + 1] = deadline
      known[#known + 1] = session
    else
      unknown[#unknown + 1] = session
    end
  end
  if known[1] then redis.call('ZADD', expiries, unpack(known)) end
end
finish()
return { given, unknown }
