-- Read entries of a stream, and the stream's state (see streams/redis.py and streams/durable.py).
--
-- KEYS: meta, log; the lineage record. ARGV: the lineage; the time or ''; history size; history TTL in seconds; the
--   offset after which the entries begin; the maximum number of entries to return; '1' to read all entries, or '0' to
--   read entries within the history size and TTL; the size in bytes after which no more entries are returned, or '' for
--   no limit.
-- Returns the epoch, the tail, the oldest offset that can be read (tail + 1 if there is none), the entries in the
--   format of XRANGE, and the lineage. The epoch is '' if the stream does not exist. It is also '' if the epoch began
--   in another lineage, because the next append begins a new epoch.

local lineage, size, ttl = require_lineage(), tonumber(ARGV[3]), tonumber(ARGV[4])
local after, limit, all = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7] == '1'
local stored = redis.call('HMGET', KEYS[1], 'e', 't', 'r')
if not exists(stored[1], stored[3], lineage) then return { '', 0, 1, {}, lineage } end
local tail = tonumber(stored[2])
local low = tail - redis.call('XLEN', KEYS[2]) + 1
if not all then low = first_since(KEYS[2], math.max(low, tail - size + 1), tail, clock(ARGV[2]) - ttl, true) end
local entries = {}
if limit > 0 and after < tail then
  local first, last = math.max(after + 1, low), tail
  if ARGV[8] ~= '' then
    local most
    last = math.min(last, first + limit - 1)
    most = bytes_before(KEYS[2], first) + tonumber(ARGV[8])
    if bytes_before(KEYS[2], last) > most then
      last = first_where(first + 1, last, function(offset) return bytes_before(KEYS[2], offset) > most end) - 1
    end
  end
  entries = redis.call('XRANGE', KEYS[2], first .. '-0', last .. '-0', 'COUNT', limit)
end
return { stored[1], tail, low, entries, lineage }
