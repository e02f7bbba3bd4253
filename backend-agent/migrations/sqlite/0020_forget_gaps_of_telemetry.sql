-- usable from: 19
-- Gaps and refusals of telemetry go when what they speak of is kept no longer: they are found by their age. When
-- refusals of the first versions were counted is not known; it was before now.
UPDATE telemetry_refusals SET last_at = unixepoch() * 1000000 WHERE last_at IS NULL;

CREATE INDEX telemetry_gaps_by_age ON telemetry_gaps (tenant, stored_at);

CREATE INDEX telemetry_refusals_by_age ON telemetry_refusals (tenant, last_at);
