-- The actor that a host joined first; an empty name is the whole relay's.
ALTER TABLE subscriptions ADD COLUMN topic TEXT NOT NULL DEFAULT '';

-- The further actors that a host joined. What is known of the host itself is in its row of subscriptions.
CREATE TABLE further_subscriptions (
    host TEXT NOT NULL,
    topic TEXT NOT NULL,
    actor TEXT NOT NULL,
    inbox TEXT NOT NULL,
    style TEXT NOT NULL,
    state TEXT NOT NULL,
    follow_id TEXT NOT NULL,
    since BIGINT NOT NULL,
    PRIMARY KEY (host, topic)
);

-- Which hosts get an entry, or got an object, from a topic's actor.
ALTER TABLE log ADD COLUMN via BYTEA;
ALTER TABLE objects ADD COLUMN via BYTEA;

-- Lists of the operator's, as JSON.
CREATE TABLE topic_lists (
    name TEXT PRIMARY KEY,
    list TEXT NOT NULL
);
