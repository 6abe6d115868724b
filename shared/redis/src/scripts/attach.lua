-- Adds a session. KEYS: the user. ARGV: the session's field, its entry, and its device if it has one.
-- An entry is the gateway and, after a line feed, the device: ids hold no control characters.
-- Answers field and entry of the session that it replaces, if there is one.
local replaced = {}
if ARGV[3] then
  local fields = redis.call('HGETALL', KEYS[1])
  for i = 1, #fields, 2 do
    local field, entry = fields[i], fields[i + 1]
    local feed = string.find(entry, '\n', 1, true)
    if feed and field ~= ARGV[1] and string.sub(entry, feed + 1) == ARGV[3] then
      redis.call('HDEL', KEYS[1], field)
      replaced = { field, entry }
    end
  end
end
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2], 'seen', time[1] * 1000 + math.floor(time[2] / 1000))
-- A session may last for weeks without another word.
redis.call('PERSIST', KEYS[1])
return replaced
