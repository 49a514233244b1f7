-- Recipients that principals with a daily cap sent to; days since 1970, UTC.
CREATE TABLE sent (
    principal BIGINT NOT NULL,
    day BIGINT NOT NULL,
    recipients BIGINT NOT NULL,
    PRIMARY KEY (principal, day)
);
