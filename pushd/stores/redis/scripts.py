"""What runs inside Redis (Lua 5.1, Redis 5 and later), so that one call does its work for hundreds of users at once.

A *plan* says what is done with which keys, in the order of KEYS: "2:1,3;1:2;" means places 1 and 3 for the first two
keys, place 2 for the third. What is at a place follows the plan in ARGV, so that a text is sent once for all its users.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha1

# A key of another program's, of another type, must not stop the others: its index is in the reply.
_COMMON = r"""
-- A call ends early when it has cost about 4 ms (some 0.2 us each): Redis serves nobody else meanwhile.
local MOST_WORK = 20000
local work = 0

local function is_wrong_type(reply)
  return string.find(reply.err, 'WRONGTYPE', 1, true)
end

-- JSON.parse and Python take halves of surrogate pairs, this decoder does not; elements.py takes no id with such signs.
local function without_surrogates(element)
  return string.gsub(element, '(\\+)u[dD][89a-fA-F]%x%x', function(slashes)
    if #slashes % 2 == 1 then return string.sub(slashes, 2) .. '?' end
  end)
end

-- What an element calls itself, the digits of a number, nil if nothing: elements.py decides the same.
local function id_of(element)
  local is_json, decoded = pcall(cjson.decode, element)
  if not is_json then is_json, decoded = pcall(cjson.decode, (without_surrogates(element))) end
  local id = is_json and type(decoded) == 'table' and decoded.message_id
  if type(id) == 'number' then
    for digits, more in string.gmatch(element, '"message_id"%s*:%s*(-?%d+)([.eE]?)') do
      if more == '' and tonumber(digits) == id then return digits end
    end
  end
  return type(id) == 'string' and id ~= '' and id or nil
end

-- The longest part of an id that every JSON encoder writes as it is: an element without it has not that id.
local function needle_of(id)
  local longest = ''
  for run in string.gmatch(id, '[%w._:~-]+') do
    if #run > #longest then longest = run end
  end
  return longest
end
"""

# KEYS; ARGV: max_per_user, ttl in s, whether some may wait already, plan, then by place: element, id.
# Returns how many keys are done, then the indexes of those that are no lists.
_SAVE = """
local max_per_user, ttl_s, may_repeat = tonumber(ARGV[1]), ARGV[2], ARGV[3] == '1'
local needles = {}

local function waits(waiting, id)
  if id == '' then return false end
  needles[id] = needles[id] or needle_of(id)
  local needle = needles[id]
  for _, element in ipairs(waiting) do
    if string.find(element, needle, 1, true) and id_of(element) == id then return true end
  end
  return false
end

-- They were pushed before it was known whether they wait: most users have an empty mailbox. What is deeper than
-- max_per_user in it is not looked at: it is trimmed.
local function drop_repeated(key, elements, ids)
  local waiting = redis.call('LRANGE', key, #elements, #elements + max_per_user - 1)
  work = work + #waiting * (4 + #elements)
  local fresh = {}
  for place, element in ipairs(elements) do
    if not waits(waiting, ids[place]) then fresh[#fresh + 1] = element end
  end
  if #fresh < #elements then
    redis.call('LTRIM', key, #elements, -1)
    if #fresh > 0 then redis.call('LPUSH', key, unpack(fresh)) end
  end
end

local index, reply = 0, {0}
for count, places in string.gmatch(ARGV[4], '(%d+):([%d,]+)') do
  local elements, ids = {}, {}
  for place in string.gmatch(places, '%d+') do
    elements[#elements + 1] = ARGV[3 + 2 * place]
    ids[#ids + 1] = ARGV[4 + 2 * place]
  end
  for _ = 1, count do
    index = index + 1
    local key = KEYS[index]
    local length = redis.pcall('LPUSH', key, unpack(elements))
    if type(length) == 'table' then
      if not is_wrong_type(length) then return length end
      reply[#reply + 1] = index
    else
      if may_repeat and length > #elements then drop_repeated(key, elements, ids) end
      if length > max_per_user then
        redis.call('LTRIM', key, 0, max_per_user - 1)
        work = work + (length - max_per_user) / 50
      end
      redis.call('EXPIRE', key, ttl_s)
    end
    reply[1] = index
    if work > MOST_WORK then return reply end
  end
end
return reply
"""

# KEYS; ARGV: how many bytes are enough, max_per_user, how many bytes an element may have. Returns how many keys were
# read, then by key that has something: its index, and its elements, newest first, or 0 if it is no list. In place of an
# element that is too large its size.
_READ = """
local enough, total, reply = tonumber(ARGV[1]), 0, {#KEYS}
local deepest, most_bytes = tonumber(ARGV[2]) - 1, tonumber(ARGV[3])
for index, key in ipairs(KEYS) do
  local waiting = redis.pcall('LRANGE', key, 0, deepest)
  if waiting.err then
    if not is_wrong_type(waiting) then return waiting end
    reply[#reply + 1] = index
    reply[#reply + 1] = 0
  elseif #waiting > 0 then
    reply[#reply + 1] = index
    reply[#reply + 1] = waiting
    for place, element in ipairs(waiting) do
      if #element > most_bytes then
        waiting[place] = #element
      else
        total = total + #element
      end
    end
    if total >= enough then
      reply[1] = index
      break
    end
  end
end
return reply
"""

# KEYS; ARGV: max_per_user, how many bytes an element may have, plan, then by place: id. Any element goes by "sha1:" and
# its SHA-1, too. Returns the same as a save.
_REMOVE = """
-- A few ids are looked for as text, which costs less than reading every element.
local MOST_NEEDLES = 8
-- Who reads a mailbox acknowledges what is not among the newest any more when others have pushed meanwhile.
local DEEPER = 1000
local max_per_user, most_bytes = tonumber(ARGV[1]), tonumber(ARGV[2])

local function wanted_by(places)
  local wanted = {ids = {}, needles = {}, count = 0, is_hashed = false}
  for place in string.gmatch(places, '%d+') do
    local id = ARGV[3 + place]
    wanted.ids[id] = true
    wanted.count = wanted.count + 1
    wanted.needles[#wanted.needles + 1] = needle_of(id)
    if string.find(id, '^sha1:') then wanted.is_hashed = true end
  end
  return wanted
end

local function may_be(element, wanted)
  if #wanted.needles > MOST_NEEDLES then return true end
  for _, needle in ipairs(wanted.needles) do
    if string.find(element, needle, 1, true) then return true end
  end
  return false
end

-- The id by which it is wanted, or nil.
local function wanted_id(element, wanted)
  if #element > most_bytes then return nil end
  if wanted.is_hashed then
    local name = 'sha1:' .. redis.sha1hex(element)
    if wanted.ids[name] then return name end
  end
  if not may_be(element, wanted) then return nil end
  local id = id_of(element)
  return id and wanted.ids[id] and id
end

-- Of a mailbox of `length`, what was `found`, but not all of it.
local function take_out(key, found, waiting, length)
  local first, last = 1, #found
  while first <= last and found[first] == first do first = first + 1 end
  while first <= last and found[last] == length - (#found - last) do last = last - 1 end
  if last - first < #found - 1 then redis.call('LTRIM', key, first - 1, last - #found - 1) end
  length = length - #found + last - first + 1
  for index = first, last do
    local place = found[index] - first + 1
    local is_nearer_end = place * 2 > length  -- oldest ones go first
    redis.call('LREM', key, is_nearer_end and -1 or 1, waiting[found[index]])
    work = work + 20 + math.min(place, length - place) / 10
  end
end

local index, reply = 0, {0}
for count, places in string.gmatch(ARGV[3], '(%d+):([%d,]+)') do
  local wanted = wanted_by(places)
  for _ = 1, count do
    index = index + 1
    local key = KEYS[index]
    local length = redis.pcall('LLEN', key)
    if type(length) == 'table' then
      if not is_wrong_type(length) then return length end
      reply[#reply + 1] = index
    elseif length > 0 then
      local waiting = redis.call('LRANGE', key, 0, max_per_user - 1)
      local found, missing, seen = {}, wanted.count, {}
      local function look(from)
        for place = from, #waiting do
          local id = wanted_id(waiting[place], wanted)
          if id then
            found[#found + 1] = place
            if not seen[id] then missing = missing - 1 end
            seen[id] = true
          end
        end
        work = work + 5 * (#waiting - from + 1)
      end
      look(1)
      if missing > 0 and length > #waiting then
        local read = #waiting
        for _, element in ipairs(redis.call('LRANGE', key, read, read + DEEPER - 1)) do
          waiting[#waiting + 1] = element
        end
        look(read + 1)
      end
      if #found == length then
        redis.call('DEL', key)
      elseif #found > 0 then
        take_out(key, found, waiting, length)
      end
    end
    reply[1] = index
    if work > MOST_WORK then return reply end
  end
end
return reply
"""

# KEYS; ARGV: max_per_user, plan, then by place: element, id. Elements with the id become that one, saved when they
# were. Returns the same as a save.
_REPLACE = """
local max_per_user = tonumber(ARGV[1])

local function saved_as(fresh, element)
  local saved = string.match(element, '^.*"saved_at":(%d+)')
  local head, tail = string.match(fresh, '^(.*"saved_at":)%d+(.*)$')
  return saved and head and head .. saved .. tail or fresh
end

local index, reply = 0, {0}
for count, place in string.gmatch(ARGV[2], '(%d+):(%d+)') do
  local fresh, id = ARGV[1 + 2 * place], ARGV[2 + 2 * place]
  local needle = needle_of(id)
  for _ = 1, count do
    index = index + 1
    local key = KEYS[index]
    local waiting = redis.pcall('LRANGE', key, 0, max_per_user - 1)
    if waiting.err then
      if not is_wrong_type(waiting) then return waiting end
      reply[#reply + 1] = index
    else
      for at, element in ipairs(waiting) do
        if string.find(element, needle, 1, true) and id_of(element) == id then
          redis.call('LSET', key, at - 1, saved_as(fresh, element))
        end
      end
      work = work + 10 + #waiting * 5
    end
    reply[1] = index
    if work > MOST_WORK then return reply end
  end
end
return reply
"""

# One key. Returns how many elements were in it.
_CLEAR = """
local count = redis.pcall('LLEN', KEYS[1])
if type(count) == 'table' then
  if not is_wrong_type(count) then return count end
  return 0
end
redis.call('DEL', KEYS[1])
return count
"""

# One key that nobody has. What all the others need, and what a server that is full or read-only refuses.
_PROBE = """
redis.call('LRANGE', KEYS[1], 0, -1)
redis.call('LLEN', KEYS[1])
redis.call('LPUSHX', KEYS[1], '')
redis.call('LTRIM', KEYS[1], 0, -1)
redis.call('LREM', KEYS[1], 1, '')
redis.call('EXPIRE', KEYS[1], 1)
redis.call('DEL', KEYS[1])
return 1
"""


@dataclass(frozen=True, slots=True)
class Script:
    """A text and the name under which Redis keeps it."""

    text: str
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        name = sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "digest", name)


SAVE = Script(_COMMON + _SAVE)
READ = Script(_COMMON + _READ)
REMOVE = Script(_COMMON + _REMOVE)
REPLACE = Script(_COMMON + _REPLACE)
CLEAR = Script(_COMMON + _CLEAR)
PROBE = Script(_PROBE)
