-- Forgets a user without sessions, of whom the record has one line; whether nothing is left.
local record = redis.call('GET', KEYS[1])
if not record then
    return 1
end
if string.find(record, '\n', 1, true) then
    return 0
end
redis.call('DEL', KEYS[1])
return 1
