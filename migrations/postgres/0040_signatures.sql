-- How a host wants requests signed, as its answers taught, and that answer.
ALTER TABLE subscriptions ADD COLUMN learnt_signature TEXT;
ALTER TABLE subscriptions ADD COLUMN signature_answer TEXT;
