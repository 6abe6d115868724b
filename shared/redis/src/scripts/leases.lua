-- Reads gateways' leases. KEYS: the leases. Answers of each whether it runs, when it was last renewed (nil: that is
-- not known), and what time it is. A lease that was renewed in the future does not run: the clock was set back, and by
-- `until` it might run for years. That a lease was found lapsed is noted in it, for the next renewal.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local leases = {}
for place, key in ipairs(KEYS) do
  local lease = redis.call('HMGET', key, 'until', 'renewed', 'lapsed', 'resigned')
  local runs = lease[1] and tonumber(lease[2]) <= now and now <= tonumber(lease[1])
  if lease[1] and not (runs or lease[3] or lease[4]) then
    redis.call('HSET', key, 'lapsed', 1)
  end
  leases[place] = { runs and 1 or 0, lease[2] and tonumber(lease[2]), now }
end
return leases
