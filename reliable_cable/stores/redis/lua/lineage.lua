-- Return the lineage of the data, and begin a new one if the data may have changed (see lineage.py).
--
-- KEYS: the lineage record, a hash with run_id, replid, token and began. ARGV: the server's run_id; its master_replid
--   and master_replid2, if scripts may not call INFO; a token for a new lineage; a token that must be replaced, or '';
--   the TTL of the record in seconds; the uptime of the server in seconds; only in a cluster: what is known of another
--   server that may have written the record: its run_id if its slots were moved here, '-' and its run_id if its data may
--   have lost something, or '?' if nothing is known.
-- Returns the token. In a cluster, returns the run_id and replid of the record instead, and changes nothing, if the
-- record was written by another server, and ARGV[8] says nothing about that server.
--
-- A new lineage begins if another server process has the data, after a restart or the promotion of a replica, or if the
-- same process was promoted again. A primary also changes its master_replid when its first replica connects, and when
-- it frees its backlog. In these cases, master_replid2 is zero, and the data are the same.
--
-- In a cluster, the data of a partition may have been moved from another primary, with its record. No data are lost by
-- this, so the token stays. The data of a promoted replica have the record of its former primary, too; its replid is then
-- the master_replid2 of this server.

local run_id, fresh, replaced = ARGV[1], ARGV[4], ARGV[5]
-- The client read ARGV[2] and ARGV[3] before this script. The server may have been demoted and promoted since then.
local replid, former_replid = replication_ids()
if not replid then replid, former_replid = ARGV[2], ARGV[3] end
local promoted = string.match(former_replid or '', '[^0]') ~= nil
local stored = redis.call('HMGET', KEYS[1], 'run_id', 'replid', 'token')
local token, moved_from = stored[3], ARGV[8]
local foreign = moved_from and token and stored[1] ~= run_id and stored[2] ~= former_replid
if foreign and moved_from ~= stored[1] and moved_from ~= '-' .. (stored[1] or '') then
  return { stored[1] or '', stored[2] or '' }
end
if not token then
  -- Servers of the previous release bind epochs to the run_id itself. They know no clusters.
  token = moved_from and fresh or run_id
elseif foreign and moved_from == stored[1] and token ~= replaced then
  redis.call('HSET', KEYS[1], 'run_id', run_id)
elseif stored[1] ~= run_id or (stored[2] ~= replid and promoted) or token == replaced then
  token = fresh
end
if token ~= stored[3] or replid ~= stored[2] then
  redis.call('HSET', KEYS[1], 'run_id', run_id, 'replid', replid, 'token', token)
end
if token ~= stored[3] then
  -- Messages from before this time may be lost. If there is no record, only a restart can have lost messages. The
  -- server counts whole seconds from the second in which it started, so it may have started up to a second later.
  local running = stored[3] and 0 or math.max(tonumber(ARGV[7]) - 1, 0)
  redis.call('HSET', KEYS[1], 'began', text(clock('') - running))
end
local ttl = tonumber(ARGV[6])
if redis.call('TTL', KEYS[1]) < ttl - 86400 then redis.call('EXPIRE', KEYS[1], ttl) end
return token
