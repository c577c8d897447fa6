-- Read a page of a stream, and the stream's state (streams/redis.py, streams/durable.py).
--
-- KEYS: meta, log; the record of the lineage. ARGV: the lineage; now or ''; history size; history TTL; the offset after
--   which; the limit; '1' to offer all entries, '0' to offer those within the history size and TTL.
-- Returns epoch, tail, low (the oldest offset that is offered, tail + 1 if none is), entries as XRANGE gives them. A
-- stream that does not exist has the epoch ''. So has one whose epoch began in another lineage: its next append begins
-- a new epoch.

local lineage, size, ttl = require_lineage(), tonumber(ARGV[3]), tonumber(ARGV[4])
local after, limit, all = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7] == '1'
local stored = redis.call('HMGET', KEYS[1], 'e', 't', 'r')
if not exists(stored[1], stored[3], lineage) then return { '', 0, 1, {} } end
local tail = tonumber(stored[2])
local low = tail - redis.call('XLEN', KEYS[2]) + 1
if not all then low = first_since(KEYS[2], math.max(low, tail - size + 1), tail, clock(ARGV[2]) - ttl, true) end
local entries = {}
if limit > 0 and after < tail then
  entries = redis.call('XRANGE', KEYS[2], math.max(after + 1, low) .. '-0', '+', 'COUNT', limit)
end
return { stored[1], tail, low, entries }
