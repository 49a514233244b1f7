-- Identity, access, secrets, bans, audit, nodes, tunnel endpoints.
CREATE TABLE versions (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO versions (name, value) VALUES ('accounts', 1), ('subscriptions', 1);

CREATE TABLE principals (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    role TEXT NOT NULL,
    grants TEXT NOT NULL,
    disabled BOOLEAN NOT NULL,
    created_at INTEGER NOT NULL
);

CREATE TABLE credentials (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    principal INTEGER NOT NULL,
    kind TEXT NOT NULL,
    hash TEXT NOT NULL,
    label TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER
);
CREATE INDEX credentials_by_principal ON credentials (principal);
CREATE INDEX credentials_by_hash ON credentials (kind, hash);

CREATE TABLE rules (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    rule TEXT NOT NULL
);

CREATE TABLE secrets (
    name TEXT PRIMARY KEY,
    sealed BLOB NOT NULL
) WITHOUT ROWID;

CREATE TABLE facts (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    who TEXT NOT NULL,
    origin TEXT NOT NULL,
    action TEXT NOT NULL,
    object TEXT NOT NULL,
    detail TEXT NOT NULL
);
CREATE INDEX audit_by_time ON audit (at);

CREATE TABLE bans (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    net TEXT NOT NULL,
    engine TEXT,
    reason TEXT NOT NULL,
    made_by TEXT NOT NULL,
    since INTEGER NOT NULL,
    until INTEGER,
    repeats INTEGER NOT NULL
);
CREATE INDEX bans_by_net ON bans (net, since);

CREATE TABLE proved (
    address TEXT PRIMARY KEY,
    at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX proved_by_time ON proved (at);

CREATE TABLE nodes (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    epoch INTEGER NOT NULL,
    alive_until INTEGER NOT NULL
);

CREATE TABLE endpoints (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    agent INTEGER NOT NULL,
    label TEXT NOT NULL,
    kind TEXT NOT NULL,
    slot TEXT UNIQUE,
    since INTEGER NOT NULL,
    UNIQUE (agent, label)
);

CREATE TABLE tombstones (
    slot TEXT PRIMARY KEY,
    agent INTEGER NOT NULL,
    released_at INTEGER NOT NULL
) WITHOUT ROWID;
