-- What became of mail that is gone: the stories of one commit in one row, one JSON object a line; and beside them, close
-- together, the fingerprints of all that they can be looked for by, four bytes each.
CREATE TABLE trail (
    id INTEGER PRIMARY KEY,
    written_at INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    stories BLOB NOT NULL
);
CREATE TABLE trail_keys (
    batch INTEGER PRIMARY KEY,
    keys BLOB NOT NULL
);
ALTER TABLE queue_totals ADD COLUMN trail_bytes INTEGER NOT NULL DEFAULT 0;

-- Who gave the order that a delivery has.
ALTER TABLE deliveries ADD COLUMN ordered_by TEXT NOT NULL DEFAULT '';

-- What gateways of a common store tell each other about the queue, for a minute or two.
CREATE TABLE mail_announcements (
    id INTEGER PRIMARY KEY,
    node INTEGER NOT NULL,
    made_at INTEGER NOT NULL,
    words TEXT NOT NULL,
    answered INTEGER NOT NULL DEFAULT 0,
    deliveries INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX mail_announcements_by_time ON mail_announcements (made_at);
