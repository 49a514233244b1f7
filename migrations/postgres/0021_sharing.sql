-- One owner of each name and port: an agent, or a group of agents that share their visitors.
CREATE TABLE slots (
    slot TEXT PRIMARY KEY,
    owner TEXT NOT NULL
);
INSERT INTO slots (slot, owner) SELECT slot, 'agent:' || agent FROM endpoints WHERE slot IS NOT NULL;

ALTER TABLE endpoints DROP CONSTRAINT endpoints_slot_key;
CREATE INDEX endpoints_by_slot ON endpoints (slot);

ALTER TABLE tombstones ADD COLUMN owner TEXT NOT NULL DEFAULT '';

-- Addresses that have stayed in a game, and when last.
CREATE TABLE regulars (
    address TEXT PRIMARY KEY,
    at BIGINT NOT NULL
);
CREATE INDEX regulars_by_time ON regulars (at);
