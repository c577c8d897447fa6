-- Publish a message that is not kept (streams/redis.py).
--
-- KEYS: the record of the lineage. ARGV: the lineage; channel; message.

require_lineage()
require_primary()
redis.call('PUBLISH', ARGV[2], ARGV[3])
