-- The functions that all presence scripts share (see presence/redis.py). They precede each script. Each script handles
-- one stream.
--
-- KEYS: the stream's meta, expiries, sessions, members, left, infos and queue; the index of all streams; the sweeps
--   (see due.lua); the lineage record.
-- ARGV: the lineage; a new incarnation, in case the stream has no data; the time or ''; the stream's name; its channel;
--   PRESENCE_TTL; the seconds for which leaves are remembered; then, from 8, the arguments of the script.
--
-- meta (hash): i incarnation, r lineage of the data in which it began, n number of joins so far.
-- expiries (sorted set): session -> time of expiry. sessions (hash): session -> id.
-- members (hash): id -> '<number of sessions> <number of the join> <info>'. Ids and infos are JSON texts. The info is
--   that of the earliest session.
-- infos (hash): session -> '<number of the join> <info>', for all sessions except the earliest one of each id.
-- queue (sorted set): '<id> <number of the join> <session>', for the sessions in infos. All scores are 0, so the
--   sessions of an id are in the order of their joins.
--   Servers of earlier releases have neither infos nor queue. They replace the info in members when a session joins,
--   and leave entries of removed sessions in the queue.
-- left (sorted set): id -> time of the leave. Ids that joined again are not included.
-- index (sorted set): name of a stream -> time of the first expiry of its sessions.

local meta, expiries, sessions, members, left = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local infos, queue, index, sweeps = KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local lineage, fresh, now, stream, channel = require_lineage(), ARGV[2], clock(ARGV[3]), ARGV[4], ARGV[5]
local ttl, memory = tonumber(ARGV[6]), tonumber(ARGV[7])

-- How long, in seconds, members are kept if no server is running. A server that starts within this time announces their
-- leaves.
local UNATTENDED = 86400

-- Return the incarnation of the stream's data; false if there is none. An incarnation ends when the data expire. It
-- also ends with the lineage of the data, because older data may then have replaced them.
local function incarnation()
  local stored = redis.call('HMGET', meta, 'i', 'r')
  return stored[1] and stored[2] == lineage and stored[1]
end

local function begin()
  local known = incarnation()
  if not known then redis.call('HSET', meta, 'i', fresh, 'r', lineage) end
  return known or fresh
end

-- Return the number of sessions of an id, the number of its join, and its info; or nil if it is not a member.
local function find(id)
  local member = redis.call('HGET', members, id)
  if not member then return nil end
  local count, order, info = string.match(member, '^(%d+) (%d+) (.*)$')
  return tonumber(count), order, info
end

local function keep(id, count, order, info)
  redis.call('HSET', members, id, string.format('%d %s ', count, order) .. info)
end

-- Return the number of the join of a session, if it is in infos.
local function queued(session)
  local entry = redis.call('HGET', infos, session)
  return entry and string.match(entry, '^%d+')
end

local function enqueue(session, id, info)
  local number = string.format('%016d', redis.call('HINCRBY', meta, 'n', 1))
  redis.call('HSET', infos, session, number .. ' ' .. info)
  redis.call('ZADD', queue, 0, id .. ' ' .. number .. ' ' .. session)
end

-- Remove a session from infos and the queue. Return whether it was there.
local function dequeue(session, id)
  local number = queued(session)
  if not number then return false end
  redis.call('HDEL', infos, session)
  redis.call('ZREM', queue, id .. ' ' .. number .. ' ' .. session)
  return true
end

-- Change the key of a session of an id. It keeps its info and its place in the queue.
local function rename(session, name, id)
  redis.call('HDEL', sessions, session)
  redis.call('ZREM', expiries, session)
  redis.call('HSET', sessions, name, id)
  local entry = redis.call('HGET', infos, session)
  if entry then
    local number = queued(session)
    dequeue(session, id)
    redis.call('HSET', infos, name, entry)
    redis.call('ZADD', queue, 0, id .. ' ' .. number .. ' ' .. name)
  end
end

-- Remove the first session of an id from the queue, and return its info; or nil if no session is queued.
local function next_info(id)
  while true do
    -- '!' follows the space. No id is the beginning of another one, because ids are quoted.
    local first = redis.call('ZRANGEBYLEX', queue, '[' .. id .. ' ', '(' .. id .. '!', 'LIMIT', 0, 1)[1]
    if not first then return nil end
    local number, session = string.match(first, '^(%d+) (.*)$', #id + 2)
    local info = redis.call('HGET', infos, session)
    local valid = redis.call('HGET', sessions, session) == id and queued(session) == number
    redis.call('ZREM', queue, first)
    if valid then
      redis.call('HDEL', infos, session)
      return string.sub(info, #number + 2)
    end
  end
end

-- Announce a join ('j') or a leave ('l'), and return the event.
local function announce(kind, id, info)
  publish(channel, kind .. '{"id":' .. id .. ',"info":' .. info .. '}')
  return { kind, id, info }
end

-- Remove a session. If it was the last one of its id, announce the leave and return the event.
local function remove(session)
  local id = redis.call('HGET', sessions, session)
  redis.call('ZREM', expiries, session)
  redis.call('HDEL', sessions, session)
  local count, order, info
  if id then count, order, info = find(id) end
  local earliest = not (id and dequeue(session, id))
  if not count then return nil end
  if count > 1 then return keep(id, count - 1, order, earliest and next_info(id) or info) end
  redis.call('HDEL', members, id)
  redis.call('ZADD', left, text(now), id)
  return announce('l', id, info)
end

-- Add the stream to the index, with the time of its first expiry. If no time of a search is recorded, record this time,
-- so that the next search notices an outage that began after this call.
local function list(expiry, life)
  if redis.call('ZADD', index, expiry, stream) == 1 and redis.call('HSETNX', sweeps, 'at', text(now)) == 1 then
    redis.call('PEXPIRE', sweeps, life)
  end
  redis.call('PEXPIRE', index, life)
end

-- Forget old leaves, update the index, and set the TTLs of all keys. Call this after each change.
local function finish()
  redis.call('ZREMRANGEBYSCORE', left, '-inf', '(' .. text(now - memory))
  local first = redis.call('ZRANGE', expiries, 0, 0, 'WITHSCORES')
  local life = ttl + memory
  if first[1] then
    life = life + UNATTENDED
    -- The index must not expire before the stream.
    list(first[2], math.ceil(life * 1000) + 1000)
  else
    redis.call('ZREM', index, stream)
  end
  for key = 1, 7 do redis.call('PEXPIRE', KEYS[key], math.ceil(life * 1000)) end
end
