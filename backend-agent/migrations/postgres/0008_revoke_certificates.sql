-- usable from: 1
-- One certificate of a gateway is revoked, and the others go on. A backend that does not know this takes it as before.
ALTER TABLE certificates ADD COLUMN revoked_at bigint;
