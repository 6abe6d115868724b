#!/bin/sh
# What `ServerProcess` sees of a server: a log on stderr, and the line that says that it serves.
echo "$NARU_LISTEN $NARU_JWT_SECRET" >&2
[ -n "$NARU_JWT_SECRET" ] || exit 3
echo "starting"
echo "listening on http://127.0.0.1:4242"
exec sleep 60
