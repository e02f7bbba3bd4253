-- When the position of a spool epoch moved last, so that it can go some time after the last record of that epoch. Of those
-- that there are it is not known: from now on.
ALTER TABLE telemetry_positions ADD COLUMN moved_at INTEGER NOT NULL DEFAULT 0;

UPDATE telemetry_positions SET moved_at = unixepoch() * 1000000;
