-- MTA-STS policies as they were fetched: the record's id, the policy as JSON, and until when it holds (ms since 1970).
CREATE TABLE sts_policies (
    domain TEXT NOT NULL PRIMARY KEY,
    id TEXT NOT NULL,
    policy TEXT NOT NULL,
    expires BIGINT NOT NULL
);
