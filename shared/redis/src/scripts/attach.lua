-- Adds a session. KEYS: the user. ARGV: the session, its gateway, its device or '', for how many milliseconds to keep the record.
-- Answers the session that it replaces and that one's gateway, if there is one.
local record = redis.call('GET', KEYS[1]) or ''
local kept, replaced = {}, {}
for line, session, gateway, device in string.gmatch(record, '(\n([^\t]+)\t([^\t]+)\t([^\n]*))') do
  if device ~= '' and device == ARGV[3] and session ~= ARGV[1] then
    replaced = { session, gateway }
  elseif session ~= ARGV[1] then
    table.insert(kept, line)
  end
end
local time = redis.call('TIME')
local seen = time[1] * 1000 + math.floor(time[2] / 1000)
-- A session may last for weeks and is not written again, but one whose gateway died is not to stay for ever.
redis.call('SET', KEYS[1], seen .. table.concat(kept) .. '\n' .. table.concat(ARGV, '\t', 1, 3), 'PX', ARGV[4])
return replaced
