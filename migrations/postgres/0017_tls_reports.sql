-- How outgoing sessions ended, by day (since 1970, UTC), recipients' domain, and kind: the hash of a policy and a failure, both
-- as the JSON of a TLS report; without a failure all was well.
CREATE TABLE tls_sessions (
    day BIGINT NOT NULL,
    domain TEXT NOT NULL,
    kind TEXT NOT NULL,
    policy TEXT NOT NULL,
    failure TEXT,
    sessions BIGINT NOT NULL,
    PRIMARY KEY (day, domain, kind)
);

-- How far the report of a domain's day is: where it was sent to (a line each), and when it may be taken up again (ms since
-- 1970).
CREATE TABLE tls_reports (
    day BIGINT NOT NULL,
    domain TEXT NOT NULL,
    tries BIGINT NOT NULL,
    sent TEXT NOT NULL,
    done BIGINT NOT NULL,
    not_before BIGINT NOT NULL,
    PRIMARY KEY (day, domain)
);
