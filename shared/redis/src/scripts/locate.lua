-- Where users are. KEYS: the users. ARGV: what gateways' keys begin with, and after how many milliseconds of silence a
-- gateway's sessions are removed. Gateways' keys are made of what users' hold: one server allows that, a cluster does not.
-- Answers the gateways whose leases run; for each user the places of theirs in that list, and then a 0; and the places of
-- the users of whom there are sessions to remove.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local leases, running, places, abandoned = {}, {}, {}, {}
for user, key in ipairs(KEYS) do
  local fields = redis.call('HGETALL', key)
  local seen, renewed, forgotten
  for i = 1, #fields, 2 do
    if fields[i] == 'seen' then
      seen = tonumber(fields[i + 1])
    elseif string.find(fields[i], '^session:.') then
      local gateway = string.match(fields[i + 1], '^[^\n]*')
      local lease = leases[gateway]
      if not lease then
        local found = redis.call('HMGET', ARGV[1] .. gateway, 'until', 'renewed')
        lease = { renewed = found[2] and tonumber(found[2]) }
        if found[1] and now <= tonumber(found[1]) then
          table.insert(running, gateway)
          lease.place = #running
        end
        leases[gateway] = lease
      end
      if not lease.place then
        renewed = math.min(renewed or now, lease.renewed or now)
        forgotten = forgotten or not lease.renewed
      elseif lease.user ~= user then
        lease.user = user
        table.insert(places, lease.place)
      end
    else
      return redis.error_reply('UNREADABLE ' .. key)
    end
  end
  table.insert(places, 0)
  -- As `Lease::is_abandoned` says it.
  local last = math.min(renewed or now, forgotten and seen or now)
  if now - last > tonumber(ARGV[2]) then
    table.insert(abandoned, user)
  end
end
return { running, places, abandoned }
