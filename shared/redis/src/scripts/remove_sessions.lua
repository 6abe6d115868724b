-- Removes sessions. KEYS: the user. ARGV: how many milliseconds to remember when a user without sessions was last
-- seen; when these were last seen, or '' for now; the sessions' fields. Sessions that are not there change nothing.
if redis.call('HDEL', KEYS[1], unpack(ARGV, 3)) == 0 then
  return
end
local at = tonumber(ARGV[2])
if not at then
  local time = redis.call('TIME')
  at = time[1] * 1000 + math.floor(time[2] / 1000)
end
local seen = tonumber(redis.call('HGET', KEYS[1], 'seen') or 0)
if at > seen then
  redis.call('HSET', KEYS[1], 'seen', at)
end
if redis.call('HLEN', KEYS[1]) == 1 then
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
end
