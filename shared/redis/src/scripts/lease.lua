-- Reads a gateway's lease. KEYS: the lease. Answers whether it runs, when it was last renewed (nil: nobody
-- remembers), and what time it is.
local lease = redis.call('HMGET', KEYS[1], 'until', 'renewed')
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local runs = lease[1] and now <= tonumber(lease[1])
return { runs and 1 or 0, lease[2] and tonumber(lease[2]), now }
