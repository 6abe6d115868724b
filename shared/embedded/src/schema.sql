-- Times are milliseconds since 1970 in UTC; `_id` of a message is the twelve bytes of its ObjectId.
-- Columns are named like the fields of the documents they are in MongoDB.

-- The event log. No row is ever removed, so `position` (SQLite's row id) is the order of appending. A closed entry may lose
-- its content and its sender's name.
CREATE TABLE intake (
    position        INTEGER PRIMARY KEY,
    _id             BLOB NOT NULL UNIQUE,
    chatRoomId      TEXT NOT NULL,
    senderId        TEXT NOT NULL,
    clientMessageId TEXT NOT NULL,
    senderName      TEXT,
    content         TEXT,
    timestamp       INTEGER NOT NULL,
    after           BLOB,
    origin          TEXT, -- JSON
    trace           TEXT NOT NULL,
    open            INTEGER NOT NULL DEFAULT 1,
    outcome         TEXT, -- 'saved', or why not
    seq             INTEGER,
    UNIQUE (chatRoomId, senderId, clientMessageId)
) STRICT;
CREATE INDEX intake_open ON intake (position) WHERE open = 1;

-- The contents of all entries up to this id were dropped: none of them was open. One row at most.
CREATE TABLE contents_dropped (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    upTo BLOB NOT NULL
) STRICT;

-- In the order of saving, which costs a save the least: a row at the end, and an entry in each of two small indexes. (By
-- room, each room's newest page would be written for each of its messages.) `activity` orders the lists of rooms: the
-- timestamp, or later than every activity before it where a clock was set back.
CREATE TABLE chat_messages (
    chatRoomId      TEXT NOT NULL,
    seq             INTEGER NOT NULL,
    _id             BLOB NOT NULL UNIQUE,
    senderId        TEXT NOT NULL,
    senderName      TEXT NOT NULL,
    content         TEXT NOT NULL,
    timestamp       INTEGER NOT NULL,
    clientMessageId TEXT NOT NULL,
    deletedAt       INTEGER, -- of a tombstone, whose name and content are ''
    activity        INTEGER NOT NULL,
    PRIMARY KEY (chatRoomId, seq)
) STRICT;

-- A room is direct when `user1Id` is set. The newest message and its place are not kept here: `chat_messages`
-- answers both in one step, and can't disagree with itself.
CREATE TABLE chat_rooms (
    _id           TEXT PRIMARY KEY,
    user1Id       TEXT,
    user2Id       TEXT,
    name          TEXT,
    makerId       TEXT,
    createdAt     INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER)),
    memberVersion INTEGER NOT NULL DEFAULT 1,
    versionsFrom  INTEGER NOT NULL DEFAULT 1, -- of earlier versions, the members at the first only can be told
    expiredTo     INTEGER NOT NULL DEFAULT 0 -- messages up to this place have expired
) STRICT, WITHOUT ROWID;

-- The members, each from which version on, and until before which one (none: still). Those who have left are removed after
-- a while, except those of the first version. `activity` is the room's place in the list of a user who is in many rooms;
-- without it the place is computed when the list is asked for (`store/lists.rs`).
CREATE TABLE memberships (
    chatRoomId TEXT NOT NULL,
    userId     TEXT NOT NULL,
    since      INTEGER NOT NULL,
    until      INTEGER,
    leftAt     INTEGER,
    activity   INTEGER,
    PRIMARY KEY (chatRoomId, userId, since)
) STRICT, WITHOUT ROWID;
CREATE INDEX memberships_of_user ON memberships (userId, activity, chatRoomId) WHERE until IS NULL;
CREATE INDEX memberships_kept ON memberships (chatRoomId) WHERE until IS NULL AND activity IS NOT NULL;
-- So that who was a member before costs nothing.
CREATE INDEX memberships_now ON memberships (chatRoomId, userId) WHERE until IS NULL;
CREATE INDEX memberships_by_age ON memberships (leftAt) WHERE until IS NOT NULL AND since > 1;

-- What a member has seen and set; kept when they leave, for when they come back.
CREATE TABLE members (
    chatRoomId TEXT NOT NULL,
    userId     TEXT NOT NULL,
    read       INTEGER NOT NULL DEFAULT 0,
    muted      INTEGER NOT NULL DEFAULT 0,
    mutedUntil INTEGER,
    PRIMARY KEY (chatRoomId, userId)
) STRICT, WITHOUT ROWID;
CREATE INDEX members_of_user ON members (userId, chatRoomId);

-- How far each device is; '' stands for sessions without one.
CREATE TABLE received (
    chatRoomId TEXT NOT NULL,
    userId     TEXT NOT NULL,
    deviceId   TEXT NOT NULL,
    seq        INTEGER NOT NULL,
    PRIMARY KEY (chatRoomId, userId, deviceId)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER memberships_begin AFTER INSERT ON memberships BEGIN
    INSERT OR IGNORE INTO members (chatRoomId, userId) VALUES (new.chatRoomId, new.userId);
END;

-- Direct rooms get their members here, so that one which another program writes with nothing but `_id`, `user1Id`
-- and `user2Id` is like any other.
CREATE TRIGGER chat_rooms_direct AFTER INSERT ON chat_rooms WHEN new.user1Id IS NOT NULL BEGIN
    INSERT OR IGNORE INTO memberships (chatRoomId, userId, since)
        VALUES (new._id, new.user1Id, 1), (new._id, new.user2Id, 1);
END;

CREATE TABLE devices (
    userId       TEXT NOT NULL,
    deviceId     TEXT NOT NULL,
    platform     TEXT NOT NULL,
    token        TEXT NOT NULL,
    environment  TEXT NOT NULL,
    locale       TEXT,
    hidesContent INTEGER NOT NULL DEFAULT 0,
    registeredAt INTEGER NOT NULL,
    PRIMARY KEY (userId, deviceId),
    UNIQUE (platform, token)
) STRICT, WITHOUT ROWID;
CREATE INDEX devices_by_age ON devices (registeredAt);

-- Whose sessions and tokens have ended.
CREATE TABLE users (
    userId          TEXT PRIMARY KEY,
    sessionEpoch    INTEGER NOT NULL,
    tokensNotBefore INTEGER
) STRICT, WITHOUT ROWID;

-- The users whose personal data was erased, or is being erased (`completedAt` is empty).
CREATE TABLE erasures (
    userId      TEXT PRIMARY KEY,
    round       INTEGER NOT NULL,
    requestedAt INTEGER NOT NULL,
    completedAt INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX erasures_under_way ON erasures (userId) WHERE completedAt IS NULL;

-- Whom users block.
CREATE TABLE blocks (
    userId    TEXT NOT NULL,
    blockedId TEXT NOT NULL,
    PRIMARY KEY (userId, blockedId)
) STRICT, WITHOUT ROWID;

-- Pushes that a provider took.
CREATE TABLE pushes (
    eventId    BLOB PRIMARY KEY,
    providerId TEXT NOT NULL,
    recordedAt INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX pushes_by_age ON pushes (recordedAt);

-- Pushes that could not be sent.
CREATE TABLE parked (
    eventId  BLOB PRIMARY KEY,
    job      TEXT NOT NULL, -- JSON
    reason   TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    parkedAt INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX parked_by_age ON parked (parkedAt);
CREATE INDEX parked_by_reason ON parked (reason, parkedAt, eventId);

-- The durable hops. A row is there until its event is acknowledged.
CREATE TABLE queue (
    id        INTEGER PRIMARY KEY,
    hop       TEXT NOT NULL,
    writtenAt INTEGER NOT NULL, -- when it was sent or retried
    visibleAt INTEGER NOT NULL,
    attempt   INTEGER NOT NULL DEFAULT 1,
    eventId   BLOB NOT NULL,
    event     TEXT NOT NULL -- JSON, with its envelope
) STRICT;
CREATE INDEX queue_due ON queue (hop, visibleAt, id);

CREATE TABLE last_seen (
    userId TEXT PRIMARY KEY,
    seenAt INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX last_seen_by_age ON last_seen (seenAt);

-- One row: when the data was restored from a backup, or 1.
CREATE TABLE meta (
    id    INTEGER PRIMARY KEY CHECK (id = 1),
    epoch INTEGER NOT NULL
) STRICT;
INSERT INTO meta (id, epoch) VALUES (1, 1);
