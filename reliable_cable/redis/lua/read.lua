-- Read a page of a stream, and the stream's state (streams/redis.py, streams/hot.py).
--
-- KEYS: meta, log. ARGV: run_id of this Redis; now or ''; history size; history TTL; the offset after which; the limit.
-- Returns epoch, tail, low (the oldest kept offset, tail + 1 if none is), entries as XRANGE gives them. A stream that
-- does not exist has the epoch ''; so has one whose epoch another Redis gave: the next append begins another one.

local run_id, size, ttl = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4])
local after, limit = tonumber(ARGV[5]), tonumber(ARGV[6])
local stored = redis.call('HMGET', KEYS[1], 'e', 't', 'r')
-- The hot tail of a durable stream is bound to no Redis.
if not stored[1] or (stored[3] ~= '' and stored[3] ~= run_id) then return { '', 0, 1, {} } end
local tail = tonumber(stored[2])
local low = math.max(tail - redis.call('XLEN', KEYS[2]) + 1, tail - size + 1)
low = first_since(KEYS[2], low, tail, clock(ARGV[2]) - ttl, true)
local entries = {}
if limit > 0 and after < tail then
  entries = redis.call('XRANGE', KEYS[2], math.max(after + 1, low) .. '-0', '+', 'COUNT', limit)
end
return { stored[1], tail, low, entries }
