-- The key of a client's certificate is one principal's. Principals that the gateway switched off by itself, and why.
CREATE UNIQUE INDEX credentials_certificate ON credentials (hash) WHERE kind = 'certificate';
CREATE TABLE locks (
    principal BIGINT NOT NULL PRIMARY KEY,
    reason TEXT NOT NULL,
    since BIGINT NOT NULL
);
