-- Renews a gateway's lease. KEYS: the lease. ARGV: for how many milliseconds, how many to remember the renewal. Answers
-- how often it was renewed, and whether a look-up has found it lapsed since the renewal before. The clock is Redis's:
-- those of gateways need not agree. A gateway that has resigned never renews its lease again (another run has another
-- id), so a renewal that was stuck on its way can't bring it back.
if redis.call('HEXISTS', KEYS[1], 'resigned') == 1 then
  return { 0, 0 }
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[1], 'renewed', now, 'until', now + ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return { redis.call('HINCRBY', KEYS[1], 'renewals', 1), redis.call('HDEL', KEYS[1], 'lapsed') }
