-- Ends a gateway's lease, whose last renewal is now. KEYS: the lease. ARGV: how many milliseconds to remember that.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[1], 'renewed', now, 'until', 0, 'resigned', 1)
redis.call('PEXPIRE', KEYS[1], ARGV[1])
