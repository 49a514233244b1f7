-- What became of mail that is gone: the stories of one commit in one row, one JSON object a line; and beside them, close
-- together, the fingerprints of all that they can be looked for by, four bytes each.
CREATE TABLE trail (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    written_at BIGINT NOT NULL,
    size_bytes BIGINT NOT NULL,
    stories BYTEA NOT NULL
);
CREATE TABLE trail_keys (
    batch BIGINT PRIMARY KEY,
    keys BYTEA NOT NULL
);
-- Fingerprints do not get smaller.
ALTER TABLE trail_keys ALTER COLUMN keys SET STORAGE EXTERNAL;
ALTER TABLE queue_totals ADD COLUMN trail_bytes BIGINT NOT NULL DEFAULT 0;

-- Who gave the order that a delivery has.
ALTER TABLE deliveries ADD COLUMN ordered_by TEXT NOT NULL DEFAULT '';

-- What gateways of a common store tell each other about the queue, for a minute or two.
CREATE TABLE mail_announcements (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    node BIGINT NOT NULL,
    made_at BIGINT NOT NULL,
    words TEXT NOT NULL,
    answered BIGINT NOT NULL DEFAULT 0,
    deliveries BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX mail_announcements_by_time ON mail_announcements (made_at);
