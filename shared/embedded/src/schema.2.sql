-- Version 2: what push notifications need.

ALTER TABLE devices ADD COLUMN hidesContent INTEGER NOT NULL DEFAULT 0;
CREATE INDEX devices_by_age ON devices (registeredAt);

-- Hops that keep only the newest. AUTOINCREMENT, so that a number is never given twice: see bus/table.rs.
CREATE TABLE newest (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    hop       TEXT NOT NULL,
    visibleAt INTEGER NOT NULL,
    attempt   INTEGER NOT NULL DEFAULT 1,
    eventId   BLOB NOT NULL,
    event     TEXT NOT NULL -- JSON, with its envelope
) STRICT;
CREATE INDEX newest_due ON newest (hop, visibleAt, id);

-- How many rows each of them has.
CREATE TABLE newest_lengths (
    hop    TEXT PRIMARY KEY,
    length INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TRIGGER newest_longer AFTER INSERT ON newest BEGIN
    INSERT INTO newest_lengths (hop, length) VALUES (new.hop, 1)
        ON CONFLICT DO UPDATE SET length = length + 1;
END;

CREATE TRIGGER newest_shorter AFTER DELETE ON newest BEGIN
    UPDATE newest_lengths SET length = length - 1 WHERE hop = old.hop;
END;
