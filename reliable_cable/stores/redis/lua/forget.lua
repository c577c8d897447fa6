-- Delete a stream, so that its next message begins a new epoch, and announce this (see streams/redis.py).
--
-- KEYS: meta, log, idempotency keys. ARGV: channel; the epoch to end, or '' for any epoch.

if ARGV[2] ~= '' and redis.call('HGET', KEYS[1], 'e') ~= ARGV[2] then return end
if redis.call('DEL', KEYS[1], KEYS[2], KEYS[3]) > 0 then publish(ARGV[1], 'a') end
