-- Recipients that principals with a daily cap sent to; days since 1970, UTC.
CREATE TABLE sent (
    principal INTEGER NOT NULL,
    day INTEGER NOT NULL,
    recipients INTEGER NOT NULL,
    PRIMARY KEY (principal, day)
);
