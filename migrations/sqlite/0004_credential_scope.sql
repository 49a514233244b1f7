-- What a credential may be used for, in words; empty: everything that its principal may.
ALTER TABLE credentials ADD COLUMN scope TEXT NOT NULL DEFAULT '';
