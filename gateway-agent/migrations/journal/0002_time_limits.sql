-- A time limit below the catalogue's, as offered; null where the catalogue's alone holds.
ALTER TABLE entry ADD COLUMN timeout_ms INTEGER CHECK (timeout_ms >= 0);
