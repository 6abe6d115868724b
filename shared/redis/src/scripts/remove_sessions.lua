-- Removes sessions. KEYS: the user. ARGV: how many milliseconds to remember when a user without sessions was last
-- seen; for how many to keep the record of one with sessions; when these were last seen, or '' for now; the sessions.
-- Sessions that are not there change nothing.
local record = redis.call('GET', KEYS[1]) or ''
local unwanted, kept, is_changed = {}, {}, false
for i = 4, #ARGV do
  unwanted[ARGV[i]] = true
end
for line, session in string.gmatch(record, '(\n([^\t]+)[^\n]*)') do
  if unwanted[session] then
    is_changed = true
  else
    table.insert(kept, line)
  end
end
if not is_changed then
  return
end
local at = tonumber(ARGV[3])
if not at then
  local time = redis.call('TIME')
  at = time[1] * 1000 + math.floor(time[2] / 1000)
end
local seen = math.max(at, tonumber(string.match(record, '^%d+')))
if #kept > 0 then
  redis.call('SET', KEYS[1], seen .. table.concat(kept), 'PX', ARGV[2])
else
  redis.call('SET', KEYS[1], seen, 'PX', ARGV[1])
end
