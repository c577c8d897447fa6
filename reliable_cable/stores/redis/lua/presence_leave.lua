-- Remove a session (presence/redis.py).
--
-- ARGV, from 8: session.
-- Returns the events that this caused, as presence_join.

local event = remove(ARGV[8])
settle()
return { event }
