-- Delete a stream's history, begin a new epoch, and announce this (see streams/redis.py).
--
-- KEYS: meta, log, idempotency keys; the lineage record. ARGV: the lineage; a random token; the time or ''; channel; the
--   epoch to end, or '' for any epoch; how long, in seconds, to keep an idle stream's meta hash.
-- The meta hash gets the field f, the time of the newest entry that was deleted. A stream of another lineage, and the hot
-- tail of a durable stream, are deleted without a new epoch.

local lineage, fresh, now, channel, epoch, idle = require_lineage(), ARGV[2], clock(ARGV[3]), ARGV[4], ARGV[5], ARGV[6]
local stored = redis.call('HMGET', KEYS[1], 'n', 'e', 't', 'r', 'a', 'f')
local newest = tonumber(stored[3]) == 0 and stored[6] or stored[5] or text(now)
if epoch ~= '' and stored[2] ~= epoch then return end
if redis.call('DEL', KEYS[1], KEYS[2], KEYS[3]) == 0 then return end
if stored[2] and stored[4] == lineage then
  redis.call(
    'HSET', KEYS[1], 'n', stored[1] or '', 'e', fresh .. '-', 't', 0, 'r', lineage, 'a', text(now), 'z', '', 'k', '',
    'b', 0, 'f', newest
  )
  redis.call('EXPIRE', KEYS[1], idle)
end
publish(channel, 'a')
