-- What hosts leave out of what they are sent, as JSON, and who said so.
CREATE TABLE host_filters (
    host TEXT PRIMARY KEY,
    filter TEXT NOT NULL,
    set_by TEXT NOT NULL,
    at INTEGER NOT NULL
) WITHOUT ROWID;
