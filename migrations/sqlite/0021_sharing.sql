-- One owner of each name and port: an agent, or a group of agents that share their visitors.
CREATE TABLE slots (
    slot TEXT PRIMARY KEY,
    owner TEXT NOT NULL
) WITHOUT ROWID;
INSERT INTO slots (slot, owner) SELECT slot, 'agent:' || agent FROM endpoints WHERE slot IS NOT NULL;

CREATE TABLE endpoints_shared (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    agent INTEGER NOT NULL,
    label TEXT NOT NULL,
    kind TEXT NOT NULL,
    slot TEXT,
    since INTEGER NOT NULL,
    UNIQUE (agent, label)
);
INSERT INTO endpoints_shared (id, agent, label, kind, slot, since)
    SELECT id, agent, label, kind, slot, since FROM endpoints;
DROP TABLE endpoints;
ALTER TABLE endpoints_shared RENAME TO endpoints;
CREATE INDEX endpoints_by_slot ON endpoints (slot);

ALTER TABLE tombstones ADD COLUMN owner TEXT NOT NULL DEFAULT '';

-- Addresses that have stayed in a game, and when last.
CREATE TABLE regulars (
    address TEXT PRIMARY KEY,
    at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX regulars_by_time ON regulars (at);
