-- Publish a message that is not stored (see streams/redis.py).
--
-- KEYS: the lineage record. ARGV: the lineage; channel; message.

require_lineage()
require_primary()
publish(ARGV[2], ARGV[3])
