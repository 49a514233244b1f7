-- Rules of moderation: who may not publish or receive, and what is not relayed.
CREATE TABLE fedi_rules (
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    effect TEXT NOT NULL,
    reason TEXT NOT NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY (kind, subject)
) WITHOUT ROWID;
