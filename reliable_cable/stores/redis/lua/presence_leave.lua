-- Remove a session (see presence/redis.py).
--
-- ARGV, from 8: the session.
-- Returns the resulting events, in the format of presence_join.

local event = remove(ARGV[8])
finish()
return { event }
