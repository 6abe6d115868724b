-- Reads gateways' leases. KEYS: the leases. Answers of each: whether it runs by this clock, when it was last renewed (nil:
-- that is not known), what time it is, how often it was renewed, for how many milliseconds, and whether its next renewal
-- needs not be told that it has lapsed. A lease that was renewed in the future does not run: the clock was set back, and
-- by `until` it might run for years.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local leases = {}
for place, key in ipairs(KEYS) do
  local lease = redis.call('HMGET', key, 'renewed', 'until', 'renewals', 'lapsed', 'resigned')
  local renewed, last = tonumber(lease[1]), tonumber(lease[2])
  local runs = renewed and last and renewed <= now and now <= last
  local is_told = lease[4] or lease[5] or not renewed
  leases[place] = {
    runs and 1 or 0,
    renewed or false,
    now,
    tonumber(lease[3]) or false,
    renewed and last and math.max(last - renewed, 0) or 0,
    is_told and 1 or 0,
  }
end
return leases
