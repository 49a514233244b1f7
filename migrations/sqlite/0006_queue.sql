-- The queue in figures, and indexes for what is asked again and again, so that nothing periodic reads the whole queue.
CREATE TABLE queue_totals (
    node INTEGER PRIMARY KEY,
    mails INTEGER NOT NULL,
    deferred INTEGER NOT NULL
);
INSERT INTO queue_totals (node, mails, deferred)
SELECT 0, (SELECT count(*) FROM mails), (SELECT count(*) FROM deliveries);

CREATE INDEX lanes_by_owner ON lanes (owner) WHERE owner IS NOT NULL;

DROP INDEX mails_by_segment;
CREATE INDEX mails_by_segment ON mails (segment, place, body_len) WHERE segment IS NOT NULL;
