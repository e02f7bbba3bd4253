-- usable from: 1
-- Gaps and refusals of telemetry go when what they speak of is kept no longer: they are found by their age. When
-- refusals that were moved from an embedded database of long ago were counted is not known; it was before now.
UPDATE telemetry_refusals SET last_at = (extract(epoch FROM clock_timestamp()) * 1000000)::bigint WHERE last_at IS NULL;

CREATE INDEX telemetry_gaps_by_age ON telemetry_gaps (stored_at, tenant);

CREATE INDEX telemetry_refusals_by_age ON telemetry_refusals (last_at, tenant);
