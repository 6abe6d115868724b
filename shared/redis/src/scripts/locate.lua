-- Where users are. KEYS: the users. ARGV: what gateways' keys begin with, and after how many milliseconds of silence a
-- gateway's sessions are removed. Gateways' keys are made of what users' hold: one server allows that, a cluster does not.
-- Answers the gateways whose leases run; for each user the places of theirs in that list, and then a 0; and the places of
-- the users of whom there are sessions to remove.
local call, find, sub, min = redis.call, string.find, string.sub, math.min
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local leases, running, places, abandoned = {}, {}, {}, {}

local function read_lease(gateway)
  local found = call('HMGET', ARGV[1] .. gateway, 'until', 'renewed')
  local lease = { renewed = found[2] and tonumber(found[2]) }
  if found[1] and now <= tonumber(found[1]) then
    running[#running + 1] = gateway
    lease.place = #running
  end
  leases[gateway] = lease
  return lease
end

for user = 1, #KEYS do
  local fields = call('HGETALL', KEYS[user])
  local seen, stopped, renewed, forgotten
  for i = 1, #fields, 2 do
    local field, entry = fields[i], fields[i + 1]
    if field == 'seen' then
      seen = tonumber(entry)
    elseif sub(field, 1, 8) == 'session:' and #field > 8 then
      local feed = find(entry, '\n', 1, true)
      local gateway = feed and sub(entry, 1, feed - 1) or entry
      local lease = leases[gateway] or read_lease(gateway)
      if not lease.place then
        stopped = true
        renewed = min(renewed or now, lease.renewed or now)
        forgotten = forgotten or not lease.renewed
      elseif lease.user ~= user then
        lease.user = user
        places[#places + 1] = lease.place
      end
    else
      return redis.error_reply('UNREADABLE ' .. KEYS[user])
    end
  end
  places[#places + 1] = 0
  -- As `Lease::is_abandoned` has it.
  if stopped and now - min(renewed, forgotten and seen or now) > tonumber(ARGV[2]) then
    abandoned[#abandoned + 1] = user
  end
end
return { running, places, abandoned }
