-- Take a token from a bucket, if it has one (see buckets/redis.py).
--
-- KEYS: the bucket. Its value is the time at which it will be full.
-- ARGV: the time or ''; the maximum number of tokens in the bucket; the seconds in which an empty bucket becomes full.
-- Returns 1 if a token was taken; otherwise 0.

local now, size, period = clock(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local known = tonumber(redis.call('GET', KEYS[1]) or now)
if known - now > period + period / size then
  -- The clock has gone back, or the period was longer before. The bucket is empty, and fills from now on.
  redis.call('SET', KEYS[1], text(now + period), 'PX', period * 1000)
  return 0
end
local full = math.max(known, now) + period / size
-- The times are rounded, so half a token more is allowed.
if full - now > period + period / size / 2 then return 0 end
redis.call('SET', KEYS[1], text(full), 'PX', math.ceil((full - now) * 1000))
return 1
