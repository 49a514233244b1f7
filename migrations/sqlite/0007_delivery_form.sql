-- The form in which a host is sent activities: what the operator chose, and what its answers taught.
ALTER TABLE subscriptions ADD COLUMN chosen_form TEXT;
ALTER TABLE subscriptions ADD COLUMN refused_forward TEXT;
-- When its NodeInfo and its actor were last asked.
ALTER TABLE subscriptions ADD COLUMN looked_at INTEGER;
