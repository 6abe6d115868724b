-- Notes in a lease that a look-up has found it lapsed, for its next renewal. KEYS: the lease. A renewal that does not
-- find the lease knows by that.
if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('HSET', KEYS[1], 'lapsed', 1)
end
