-- Since when each of two holders is known; nothing for what was recorded before.
ALTER TABLE forks ADD COLUMN first_at INTEGER;
ALTER TABLE forks ADD COLUMN accepted_since INTEGER;
