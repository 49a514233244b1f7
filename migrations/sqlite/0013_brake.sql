-- Who did what is in the log, so that it can be taken out again while it waits.
ALTER TABLE log ADD COLUMN actor TEXT NOT NULL DEFAULT '';
-- What the operator ordered for the whole relay: the brake, and that waiting entries were taken out.
CREATE TABLE fedi_orders (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;
