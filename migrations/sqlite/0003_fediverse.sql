-- The fediverse: hosts, subscriptions, the log with its audiences, progress, known keys.
CREATE TABLE hosts (
    no INTEGER PRIMARY KEY AUTOINCREMENT,
    host TEXT NOT NULL UNIQUE,
    inbox TEXT NOT NULL
);

CREATE TABLE subscriptions (
    host TEXT PRIMARY KEY,
    host_no INTEGER NOT NULL,
    actor TEXT NOT NULL,
    inbox TEXT NOT NULL,
    style TEXT NOT NULL,
    state TEXT NOT NULL,
    follow_id TEXT NOT NULL,
    software TEXT,
    since INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE log (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    size INTEGER NOT NULL,
    kind TEXT NOT NULL,
    object TEXT NOT NULL,
    object_hash BLOB NOT NULL,
    audience BLOB NOT NULL,
    announce_to BLOB NOT NULL,
    body BLOB NOT NULL,
    announce BLOB
);
CREATE INDEX log_by_object ON log (object_hash);

-- Keys of what was appended, so that the same is not appended again after its entry was cut.
CREATE TABLE appended (
    dedupe BLOB PRIMARY KEY,
    at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX appended_by_time ON appended (at);

-- Which hosts got an object, for its Delete.
CREATE TABLE objects (
    object_hash BLOB PRIMARY KEY,
    at INTEGER NOT NULL,
    audience BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX objects_by_time ON objects (at);

CREATE TABLE fanout (
    id INTEGER PRIMARY KEY,
    owner INTEGER,
    epoch INTEGER NOT NULL,
    hold_until INTEGER NOT NULL,
    all_up_to INTEGER
);
INSERT INTO fanout (id, owner, epoch, hold_until) VALUES (1, NULL, 0, 0);

CREATE TABLE behind (
    host_no INTEGER PRIMARY KEY,
    up_to INTEGER NOT NULL,
    also TEXT NOT NULL,
    parked TEXT NOT NULL,
    failures INTEGER NOT NULL,
    next_try INTEGER,
    last_error TEXT
);

CREATE TABLE actor_keys (
    key_id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    pem TEXT NOT NULL,
    inbox TEXT,
    fetched_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX actor_keys_by_time ON actor_keys (fetched_at);
