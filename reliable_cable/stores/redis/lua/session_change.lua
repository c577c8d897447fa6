-- Replace a part of a session record (see sessions/record_text.py). Do nothing if the record is not the expected one.
--
-- KEYS: the key of the session. ARGV: the TTL in milliseconds; the version of the expected record; how many of its first
--   bytes stay; the bytes that follow them; the first and last of the bytes that stay after those; the new end.
-- Returns 1 if the record was changed, else 0.

local old = redis.call('GET', KEYS[1])
if not old or string.sub(old, -#ARGV[2]) ~= ARGV[2] then return 0 end
local new = string.sub(old, 1, ARGV[3]) .. ARGV[4] .. string.sub(old, ARGV[5], ARGV[6]) .. ARGV[7]
redis.call('SET', KEYS[1], new, 'PX', ARGV[1])
return 1
