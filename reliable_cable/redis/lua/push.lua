-- Keep and announce messages of a durable stream that the model store has numbered: the hot tail (streams/hot.py).
--
-- KEYS: meta, log. ARGV: channel; history size; history TTL in seconds; the seconds that an idle stream's numbering is
--   kept; epoch; then for each message: offset, data, exclude.
-- A message that is not the next one starts the hot tail anew, since what lies between is not here; one that is here
-- already is only announced. The hot tail is bound to no Redis (r is ''): the model has the truth.

local channel, size, ttl, idle, epoch = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5]
local now = text(clock(''))
local stored = redis.call('HMGET', KEYS[1], 'e', 't')
local tail = stored[1] == epoch and tonumber(stored[2])
for at = 6, #ARGV, 3 do
  local offset, data, exclude = tonumber(ARGV[at]), ARGV[at + 1], ARGV[at + 2]
  if not tail or offset > tail + 1 then
    redis.call('DEL', KEYS[2])
    tail = offset - 1
  end
  if offset == tail + 1 then
    redis.call('XADD', KEYS[2], offset .. '-0', 'd', data, 'c', now, 'x', exclude)
    tail = offset
  end
  redis.call('PUBLISH', channel, 'm' .. epoch .. ' ' .. offset .. ' ' .. exclude .. '\n' .. data)
end
if redis.call('XLEN', KEYS[2]) > size + math.max(16, math.floor(size / 10)) then
  redis.call('XTRIM', KEYS[2], 'MINID', (tail - size + 1) .. '-0')
end
redis.call('HSET', KEYS[1], 'e', epoch, 't', tail, 'r', '')
redis.call('EXPIRE', KEYS[1], idle)
redis.call('PEXPIRE', KEYS[2], math.ceil(ttl * 1000))
