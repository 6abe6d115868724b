-- Adds proofs to a set. KEYS: the set. ARGV: how many milliseconds to keep them, the proofs.
-- A set never exists without an end, and a shorter time never cuts a longer one.
redis.call('SADD', KEYS[1], unpack(ARGV, 2))
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[1]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
end
