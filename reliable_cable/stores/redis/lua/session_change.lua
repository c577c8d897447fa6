-- Replace a part of a session record (see sessions/record_text.py). Do nothing if the record has another version.
--
-- KEYS: the key of the session. ARGV: the TTL in milliseconds; the version of the expected record; the size of its
--   beginning that is used; the new text after the beginning; the positions of the first and the last byte of the later
--   part that is used; the new text after this part.
-- Returns 1 if the record was changed; otherwise 0.

local old = redis.call('GET', KEYS[1])
if not old or string.sub(old, -#ARGV[2]) ~= ARGV[2] then return 0 end
local new = string.sub(old, 1, ARGV[3]) .. ARGV[4] .. string.sub(old, ARGV[5], ARGV[6]) .. ARGV[7]
redis.call('SET', KEYS[1], new, 'PX', ARGV[1])
return 1
