-- Delete a stream, so that its next message begins another epoch, and announce it (streams/redis.py).
--
-- KEYS: meta, log, idempotency keys. ARGV: channel.

if redis.call('DEL', KEYS[1], KEYS[2], KEYS[3]) > 0 then redis.call('PUBLISH', ARGV[1], 'a') end
