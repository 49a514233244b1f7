-- What operators order for deferred deliveries, the attempts made (one JSON object a line), and lanes at rest.
ALTER TABLE deliveries ADD COLUMN state TEXT NOT NULL DEFAULT 'waiting';
ALTER TABLE deliveries ADD COLUMN rerouted BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE deliveries ADD COLUMN history TEXT NOT NULL DEFAULT '';

CREATE TABLE paused_lanes (
    name TEXT PRIMARY KEY,
    since INTEGER NOT NULL,
    made_by TEXT NOT NULL,
    reason TEXT NOT NULL
) WITHOUT ROWID;
