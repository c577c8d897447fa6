-- The functions that all scripts share. They precede each script.

-- Return the server's master_replid and master_replid2, which change when the server is demoted or promoted. Return
-- nothing if the server does not let scripts call INFO.
local function replication_ids()
  local info = redis.pcall('INFO', 'replication')
  if type(info) == 'string' then
    return string.match(info, 'master_replid:(%w+)'), string.match(info, 'master_replid2:(%w+)')
  end
end

-- Return the lineage of the connection, ARGV[1]. Fail if it differs from the recorded lineage, because the connection
-- was opened to other data. If ARGV[1] begins with '?', also fail if the server was demoted or promoted since the
-- lineage was recorded, because it may have received older data with the same record. The last of KEYS is the lineage
-- record (see lineage.lua).
local function require_lineage()
  local lineage, moved = ARGV[1], false
  local token, replid = unpack(redis.call('HMGET', KEYS[#KEYS], 'token', 'replid'))
  if string.sub(lineage, 1, 1) == '?' then
    lineage, moved = string.sub(lineage, 2), (replication_ids() or replid) ~= replid
  end
  if moved or token ~= lineage then error('DATAMOVED the connection was opened to other data') end
  return lineage
end

-- Fail on a replica, which would publish only to its own subscribers. A replica refuses this write. On a primary, the
-- write has no effect.
local function require_primary()
  redis.call('HDEL', KEYS[#KEYS], '')
end

-- Return whether a stream exists, which means that it has an epoch that is bound to this lineage. The hot tail of a
-- durable stream is not bound to a lineage, because the tables of the database are authoritative.
local function exists(epoch, bound, lineage)
  return epoch and (bound == '' or bound == lineage)
end

-- Return the time in seconds since 1970, by Redis's clock, or by a test's clock if its time is given.
local function clock(given)
  if given ~= '' then return tonumber(given) end
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end

-- Return a number as text. Unlike tostring(), this uses no exponents for large numbers.
local function text(number)
  return string.format('%.6f', number)
end

-- The former name of each channel, if a process of the previous release subscribes to it; otherwise false.
local former = {}

-- Publish a message in a cluster. Servers before Redis 7 have no sharded pub/sub; their subscribers use SUBSCRIBE.
local function publish_in_cluster(channel, message)
  local reply = redis.pcall('SPUBLISH', channel, message)
  if type(reply) == 'table' and reply.err then redis.call('PUBLISH', channel, message) end
end

-- Publish a message on a channel. A channel that begins with the byte 1 is a channel of a cluster (`keys.SHARDED`), whose
-- name follows. Otherwise, if a process of the previous release subscribes to the former name of the channel, also
-- publish a copy under that name. Processes of this release subscribe to both names (see pubsub.py), and drop the
-- copies. A copy ends with a space, which has no meaning after the JSON of a message.
local function publish(channel, message)
  if string.byte(channel) == 1 then return publish_in_cluster(string.sub(channel, 2), message) end
  redis.call('PUBLISH', channel, message)
  if former[channel] == nil then
    local name = string.gsub(channel, ':stream@%d+:', ':stream:', 1)
    local counts = redis.pcall('PUBSUB', 'NUMSUB', channel, name)
    -- An ACL may forbid PUBSUB. In that case, the copy is published.
    former[channel] = (counts.err or counts[4] > counts[2]) and name
  end
  if former[channel] then redis.call('PUBLISH', former[channel], message .. ' ') end
end

-- The approximate size of an entry in memory, in bytes, without its data.
local ENTRY_SIZE = 100

-- Add an entry to a log. `before` is the number of bytes of all earlier entries. Return that number including the new
-- entry. Servers of earlier releases find fields by their position, so add new fields at the end.
local function add_entry(log, offset, data, made, exclude, mark, key, before)
  redis.call(
    'XADD', log, offset .. '-0', 'd', data, 'c', made, 'x', exclude, 'u', mark, 'k', key,
    'b', string.format('%.0f', before)
  )
  return before + #data + ENTRY_SIZE
end

local function entry_at(log, offset)
  local found = redis.call('XRANGE', log, offset .. '-0', offset .. '-0')[1]
  return found and found[2]
end

-- Return the time of the entry at an offset.
local function created(log, offset)
  local entry = entry_at(log, offset)
  return entry and tonumber(entry[4])
end

-- Return the number of bytes of all entries before an offset, or -infinity if an earlier release added the entry there.
local function bytes_before(log, offset)
  local entry = entry_at(log, offset)
  return entry and tonumber(entry[12]) or -math.huge
end

-- Return the first offset from low to tail for which a test holds, or tail + 1 if there is none. If the test holds for
-- an offset, it must also hold for all later offsets.
local function first_where(low, tail, holds)
  local last, middle = tail + 1, low -- the first guess is low, because that is the most frequent result
  while low < last do
    if holds(middle) then last = middle else low = middle + 1 end
    middle = math.floor((low + last) / 2)
  end
  return low
end

-- Return the first offset from low to tail whose entry has a time at or after `time`, or tail + 1 if there is none. If
-- `strict` is true, the entry's time must be after `time`.
local function first_since(log, low, tail, time, strict)
  return first_where(low, tail, function(offset)
    local made = created(log, offset) or 0
    return made > time or (made == time and not strict)
  end)
end

-- Return the first offset that a log must keep. Entries that exceed the size or TTL are not kept, except entries
-- younger than `young` seconds, up to `most` bytes of them beyond the size.
local function first_kept(log, low, tail, now, size, ttl, young, most)
  local alive = first_since(log, low, tail, now - math.max(ttl, young), true)
  local sized = tail - size + 1
  if sized <= alive then return alive end
  local limit = bytes_before(log, sized) - most
  local stays = first_since(log, alive, sized - 1, now - young, true)
  return first_where(stays, sized - 1, function(offset) return bytes_before(log, offset) >= limit end)
end

