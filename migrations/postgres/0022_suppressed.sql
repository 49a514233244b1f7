-- Addresses that are not written to: base address in lower case, or '*' for all of a domain. Principal 0 is everybody;
-- made_by is empty where a next hop's word made the entry. Each change has its own number, so that gateways read news only.
INSERT INTO versions (name, value) VALUES ('suppressed', 0);
CREATE TABLE suppressed (
    domain TEXT NOT NULL,
    local TEXT NOT NULL,
    principal BIGINT NOT NULL,
    reason TEXT NOT NULL,
    made_by TEXT NOT NULL,
    since BIGINT NOT NULL,
    until BIGINT,
    change BIGINT NOT NULL,
    PRIMARY KEY (domain, local, principal)
);
CREATE INDEX suppressed_by_change ON suppressed (change);
CREATE INDEX suppressed_by_end ON suppressed (until);
