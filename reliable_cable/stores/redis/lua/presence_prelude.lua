-- Before each presence script (presence/redis.py). All of them are about one stream, and have
--
-- KEYS: its meta, expiries, sessions, members, left; the index of all streams; the record of the lineage.
-- ARGV: the lineage; now or ''; the stream's name; its channel; an incarnation for data that begin;
--   PRESENCE_TTL; the seconds for which it is remembered who left; then, from 8, what the script takes.
--
-- meta (hash): i incarnation, r lineage of the data in which it began, n how many ids have come so far.
-- expiries (sorted set): session -> when its time is over. sessions (hash): session -> id.
-- members (hash): id -> '<number of sessions> <number in the order of arrival> <info>'. Ids and infos are JSON texts.
-- left (sorted set): id -> when it left; not of those who are back.
-- index (sorted set): a stream's name -> when the first of its sessions' times is over.

local meta, expiries, sessions, members, left, index = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local lineage, now, stream, channel, fresh = require_lineage(), clock(ARGV[2]), ARGV[3], ARGV[4], ARGV[5]
local ttl, memory = tonumber(ARGV[6]), tonumber(ARGV[7])

-- Seconds for which members are kept that no server looks at: one that comes later announces their leaves.
local UNATTENDED = 86400

-- The incarnation of the stream's data. It ends when the data expire, or when their lineage ends: they may be older
-- data.
local function incarnation()
  local stored = redis.call('HMGET', meta, 'i', 'r')
  return stored[1] and stored[2] == lineage and stored[1]
end

local function begin()
  local known = incarnation()
  if not known then redis.call('HSET', meta, 'i', fresh, 'r', lineage) end
  return known or fresh
end

-- An id's number of sessions, place in the order of arrival, and info; nil if it is not there.
local function find(id)
  local member = redis.call('HGET', members, id)
  if not member then return nil end
  local count, order, info = string.match(member, '^(%d+) (%d+) (.*)$')
  return tonumber(count), order, info
end

local function keep(id, count, order, info)
  redis.call('HSET', members, id, string.format('%d %s ', count, order) .. info)
end

-- Announce that someone came ('j') or left ('l'), and return the event.
local function announce(kind, id, info)
  redis.call('PUBLISH', channel, kind .. '{"id":' .. id .. ',"info":' .. info .. '}')
  return { kind, id, info }
end

-- Take a session away; return the event, if it was its id's last one.
local function remove(session)
  local id = redis.call('HGET', sessions, session)
  redis.call('ZREM', expiries, session)
  redis.call('HDEL', sessions, session)
  local count, order, info
  if id then count, order, info = find(id) end
  if not count then return nil end
  if count > 1 then return keep(id, count - 1, order, info) end
  redis.call('HDEL', members, id)
  redis.call('ZADD', left, text(now), id)
  return announce('l', id, info)
end

-- After a change: forget who left long ago, note when to look at the stream again, and let nothing live for ever.
local function settle()
  redis.call('ZREMRANGEBYSCORE', left, '-inf', '(' .. text(now - memory))
  local first = redis.call('ZRANGE', expiries, 0, 0, 'WITHSCORES')
  local life = ttl + memory
  if first[1] then
    life = life + UNATTENDED
    redis.call('ZADD', index, first[2], stream)
    -- Not before the stream itself.
    redis.call('PEXPIRE', index, math.ceil(life * 1000) + 1000)
  else
    redis.call('ZREM', index, stream)
  end
  for key = 1, 5 do redis.call('PEXPIRE', KEYS[key], math.ceil(life * 1000)) end
end

