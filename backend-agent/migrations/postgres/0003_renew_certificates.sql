-- usable from: 1
-- A gateway renews its certificate over its session. The new one is registered beside the one in use, with its text as
-- long as no session was confirmed with it: a gateway that lost the answer gets it again. With the first session that
-- is, every earlier one retires. A backend that does not know this takes a retired one as before.
ALTER TABLE certificates ADD COLUMN renewed_at bigint;

ALTER TABLE certificates ADD COLUMN unproved text;

ALTER TABLE certificates ADD COLUMN retired_at bigint;

CREATE INDEX certificates_by_gateway ON certificates (agent_id, tenant);
