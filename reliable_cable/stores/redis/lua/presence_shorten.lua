-- Let a session expire earlier (see presence/redis.py).
--
-- ARGV, from 8: the session; PRESENCE_GRACE.

local session, deadline = ARGV[8], now + tonumber(ARGV[9])
local expiry = redis.call('ZSCORE', expiries, session)
if expiry and deadline < tonumber(expiry) then
  redis.call('ZADD', expiries, text(deadline), session)
  finish()
end
