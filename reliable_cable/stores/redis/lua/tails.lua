-- Return the positions of streams (streams/redis.py).
--
-- KEYS: the meta of each stream; the record of the lineage. ARGV: the lineage.
-- Returns for each stream its epoch and tail, as read.lua does: '' and 0 where it does not exist.

local lineage = require_lineage()
require_primary()
local answer = {}
for number = 1, #KEYS - 1 do
  local stored = redis.call('HMGET', KEYS[number], 'e', 't', 'r')
  answer[number] = exists(stored[1], stored[3], lineage) and { stored[1], tonumber(stored[2]) } or { '', 0 }
end
return answer
