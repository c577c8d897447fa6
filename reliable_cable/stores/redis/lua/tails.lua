-- Return the positions of streams (see streams/redis.py).
--
-- KEYS: the meta of each stream; the lineage record. ARGV: the lineage.
-- Returns the epoch and tail of each stream, or '' and 0 if it does not exist.

local lineage = require_lineage()
require_primary()
local answer = {}
for number = 1, #KEYS - 1 do
  local stored = redis.call('HMGET', KEYS[number], 'e', 't', 'r')
  answer[number] = exists(stored[1], stored[3], lineage) and { stored[1], tonumber(stored[2]) } or { '', 0 }
end
return answer
