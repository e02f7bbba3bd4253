-- How much each gateway may still add to what is kept for good: when its whole allowance is back, on the time line, and
-- how many were left out since the last that was kept.
CREATE TABLE gateway_budgets (
    tenant   TEXT    NOT NULL,
    agent_id TEXT    NOT NULL,
    kind     TEXT    NOT NULL,
    full_at  INTEGER NOT NULL,
    left_out INTEGER NOT NULL CHECK (left_out >= 0),
    PRIMARY KEY (tenant, agent_id, kind)
) STRICT, WITHOUT ROWID;

-- Results of commands that nobody knows are bounded by their bytes as well, and told of while they are recent.
ALTER TABLE orphan_results ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0 CHECK (bytes >= 0);
UPDATE orphan_results SET bytes = length(CAST(outcome AS BLOB));
CREATE INDEX orphan_results_by_gateway ON orphan_results (tenant, agent_id, received_at, command_id, bytes);
CREATE INDEX orphan_results_by_time ON orphan_results (tenant, received_at, agent_id);
CREATE INDEX forks_by_time ON forks (tenant, at, agent_id);

-- Days were of the wall clock for what was delivered and of the time line for what HELLO said; from now on they are of
-- the line, and a later day of the wall clock must not stand in their way.
UPDATE telemetry_usage SET day = 0;
-- The spool epoch that was refused last, and up to which record: what is said again is not counted again.
ALTER TABLE telemetry_usage ADD COLUMN refused_epoch TEXT;
ALTER TABLE telemetry_usage ADD COLUMN refused_seq INTEGER NOT NULL DEFAULT 0 CHECK (refused_seq >= 0);
