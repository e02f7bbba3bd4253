-- What the numbers of each hour of a day came to, by field.
CREATE TABLE telemetry_rollups (
    tenant   TEXT    NOT NULL,
    agent_id TEXT    NOT NULL,
    stream   TEXT    NOT NULL,
    day      INTEGER NOT NULL,
    fields   TEXT    NOT NULL,
    PRIMARY KEY (tenant, agent_id, stream, day)
) STRICT, WITHOUT ROWID;

CREATE INDEX telemetry_rollups_by_day ON telemetry_rollups (tenant, day);

-- Days of gateways, counted from 1970: how often it was noted that one changed, up to which change it was rolled up and
-- whether the roll-up tells of it, and until when it is somebody's to be rolled up.
CREATE TABLE telemetry_rollup_days (
    tenant        TEXT    NOT NULL,
    agent_id      TEXT    NOT NULL,
    day           INTEGER NOT NULL,
    changed       INTEGER NOT NULL,
    rolled        INTEGER NOT NULL,
    told          INTEGER NOT NULL CHECK (told IN (0, 1)),
    claimed_until INTEGER NOT NULL,
    PRIMARY KEY (tenant, agent_id, day)
) STRICT, WITHOUT ROWID;

CREATE INDEX telemetry_rollup_days_by_day ON telemetry_rollup_days (tenant, day);
CREATE INDEX due_telemetry_rollups ON telemetry_rollup_days (tenant, day, agent_id) WHERE rolled <> changed;

-- The day that is under way.
INSERT INTO telemetry_rollup_days (tenant, agent_id, day, changed, rolled, told, claimed_until)
SELECT tenant, agent_id, day, 1, 0, 0, 0 FROM telemetry_usage WHERE day > 0;
