-- Made beside the schema, and in data that an earlier state of this program has written without them.

-- Whose sessions and tokens have ended.
CREATE TABLE IF NOT EXISTS users (
    userId          TEXT PRIMARY KEY,
    sessionEpoch    INTEGER NOT NULL,
    tokensNotBefore INTEGER
) STRICT, WITHOUT ROWID;

-- Whom users block.
CREATE TABLE IF NOT EXISTS blocks (
    userId    TEXT NOT NULL,
    blockedId TEXT NOT NULL,
    PRIMARY KEY (userId, blockedId)
) STRICT, WITHOUT ROWID;
