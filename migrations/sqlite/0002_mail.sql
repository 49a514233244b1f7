-- Mail: one row for each accepted mail with its fresh deliveries; deferred deliveries in rows of their own.
CREATE TABLE mails (
    id INTEGER PRIMARY KEY,
    node INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    lanes INTEGER NOT NULL,
    open INTEGER NOT NULL,
    fresh INTEGER NOT NULL,
    gone TEXT NOT NULL DEFAULT ',',
    accepted_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    body_len INTEGER NOT NULL,
    segment INTEGER,
    place INTEGER,
    checksum INTEGER,
    head BLOB NOT NULL,
    body BLOB
);
CREATE INDEX mails_by_holder ON mails (node, epoch) WHERE fresh > 0;
CREATE INDEX mails_by_segment ON mails (segment, place) WHERE segment IS NOT NULL;

CREATE TABLE lanes (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    owner INTEGER,
    epoch INTEGER NOT NULL DEFAULT 0,
    hold_until INTEGER NOT NULL DEFAULT 0,
    next_due INTEGER
);
CREATE INDEX lanes_by_due ON lanes (next_due);

CREATE TABLE deliveries (
    mail INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    lane INTEGER NOT NULL,
    due INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    delay_reported BOOLEAN NOT NULL,
    last_error TEXT NOT NULL,
    recipients BLOB NOT NULL,
    PRIMARY KEY (mail, seq)
) WITHOUT ROWID;
CREATE INDEX deliveries_by_due ON deliveries (lane, due);

-- Segments whose bodies are known to be on the disk; the others are checked at the start.
CREATE TABLE segments (
    id INTEGER PRIMARY KEY,
    sealed BOOLEAN NOT NULL
);
