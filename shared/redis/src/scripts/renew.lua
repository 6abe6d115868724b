-- Renews a gateway's lease. KEYS: the lease. ARGV: for how many milliseconds, how many to remember the renewal. Answers
-- whether the lease was there and no look-up found it lapsed since its last renewal. The clock is Redis's: those of
-- gateways need not agree. A gateway that has resigned never renews its lease again (another run has another id), so a
-- renewal that was stuck on its way can't bring it back.
if redis.call('HEXISTS', KEYS[1], 'resigned') == 1 then
  return 1
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local was_there = redis.call('HEXISTS', KEYS[1], 'renewed')
local has_lapsed = redis.call('HDEL', KEYS[1], 'lapsed')
redis.call('HSET', KEYS[1], 'renewed', now, 'until', now + ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return (was_there == 1 and has_lapsed == 0) and 1 or 0
