-- The time limit that its operator gave a run; null where the catalogues' alone hold. A gateway is told of it.
ALTER TABLE runs ADD COLUMN timeout_ms INTEGER CHECK (timeout_ms > 0);
