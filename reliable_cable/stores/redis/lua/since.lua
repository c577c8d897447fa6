-- Find the offset before the first message since a time (see streams/redis.py).
--
-- KEYS: meta, log; the lineage record. ARGV: the lineage; the current time or ''; history size; history TTL in seconds;
--   the time; the seconds after which an idle stream may have been deleted, or '' to ignore this.
-- Returns the offset; false if some messages since the time are gone; 0 if the stream does not exist. Messages from
-- before the lineage began may be gone. A time on the first day of 1970 asks for all messages of the epoch
-- (`LONG_AGO`).

local lineage, size, ttl, since = require_lineage(), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local began = tonumber(redis.call('HGET', KEYS[#KEYS], 'began') or 0)
if since > 86400 and since < began then return false end
local stored = redis.call('HMGET', KEYS[1], 'e', 't', 'r', 'a', 'z', 'f')
if not stored[1] then
  if ARGV[6] ~= '' and since < clock(ARGV[2]) - tonumber(ARGV[6]) then return false end
  return 0
end
if stored[3] ~= lineage then return (tonumber(stored[4]) or 0) < since and 0 end
if since > 86400 and since <= (tonumber(stored[6]) or 0) then return false end
local tail, kept = tonumber(stored[2]), redis.call('XLEN', KEYS[2])
local trimmed = kept == 0 and tail > 0 and tonumber(stored[4]) or tonumber(stored[5])
if trimmed and trimmed >= since then return false end
local first = first_since(KEYS[2], tail - kept + 1, tail, since, false)
if first > tail then return tail end
if first <= tail - size or created(KEYS[2], first) <= clock(ARGV[2]) - ttl then return false end
return first - 1
