-- The queue in figures, and indexes for what is asked again and again, so that nothing periodic reads the whole queue.
CREATE TABLE queue_totals (
    node BIGINT PRIMARY KEY,
    mails BIGINT NOT NULL,
    deferred BIGINT NOT NULL
) WITH (fillfactor = 20);
INSERT INTO queue_totals (node, mails, deferred)
SELECT 0, (SELECT count(*) FROM mails), (SELECT count(*) FROM deliveries);

CREATE INDEX lanes_by_owner ON lanes (owner) WHERE owner IS NOT NULL;

DROP INDEX mails_by_holder;
CREATE INDEX mails_by_holder ON mails (node, epoch, id) WHERE fresh > 0;

-- Rows of a queue live shortly: what is left of them is cleared away while it is still little.
ALTER TABLE mails SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 2000);
ALTER TABLE deliveries SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 2000);
ALTER TABLE lanes SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 2000);
ALTER TABLE bodies SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 2000);
ALTER TABLE chunks SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 2000);
