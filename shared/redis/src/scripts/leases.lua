-- Reads gateways' leases. KEYS: the leases. Answers of each whether it runs, when it was last renewed (nil: that is
-- not known), and what time it is.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local leases = {}
for place, key in ipairs(KEYS) do
  local lease = redis.call('HMGET', key, 'until', 'renewed')
  local runs = lease[1] and now <= tonumber(lease[1])
  leases[place] = { runs and 1 or 0, lease[2] and tonumber(lease[2]), now }
end
return leases
