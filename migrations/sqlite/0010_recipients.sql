-- Addresses that there are in domains whose recipients are kept in the store; both parts in lower case.
CREATE TABLE recipients (
    domain TEXT NOT NULL,
    local TEXT NOT NULL,
    PRIMARY KEY (domain, local)
);
