-- Since when nothing reaches a host, and since when it gets nothing new because of that.
ALTER TABLE subscriptions ADD COLUMN failing_since BIGINT;
ALTER TABLE subscriptions ADD COLUMN suspended_at BIGINT;
