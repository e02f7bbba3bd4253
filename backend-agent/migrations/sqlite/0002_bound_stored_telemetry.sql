-- Whose clock says when a record was observed: the gateway's, the gateway's less its measured skew, or the backend's when
-- it arrived.
ALTER TABLE telemetry ADD COLUMN time_source TEXT NOT NULL DEFAULT 'gateway';
-- What the gateway's clock said, where that is not what is stored as observed_at.
ALTER TABLE telemetry ADD COLUMN gateway_time INTEGER;

-- When records were refused for a reason, first and last; not known of what earlier versions counted.
ALTER TABLE telemetry_refusals ADD COLUMN first_at INTEGER;
ALTER TABLE telemetry_refusals ADD COLUMN last_at INTEGER;

-- What a gateway delivered on one day, which its bounds are held against; its streams are counted for good.
CREATE TABLE telemetry_usage (
    tenant   TEXT    NOT NULL,
    agent_id TEXT    NOT NULL,
    day      INTEGER NOT NULL,
    epochs   INTEGER NOT NULL,
    records  INTEGER NOT NULL,
    bytes    INTEGER NOT NULL,
    gaps     INTEGER NOT NULL,
    streams  INTEGER NOT NULL,
    PRIMARY KEY (tenant, agent_id)
) STRICT, WITHOUT ROWID;

INSERT INTO telemetry_usage (tenant, agent_id, day, epochs, records, bytes, gaps, streams)
SELECT tenant, agent_id, 0, 0, 0, 0, 0, count(*) FROM telemetry_streams GROUP BY tenant, agent_id;
