-- Gateways that a run was meant for and that got no command, with the reason: the list that an operator meant is the
-- list that is reported.
ALTER TABLE runs ADD COLUMN skipped INTEGER NOT NULL DEFAULT 0 CHECK (skipped >= 0);

CREATE TABLE run_skips (
    tenant   TEXT NOT NULL,
    run_id   TEXT NOT NULL,
    agent_id TEXT NOT NULL,
    code     TEXT NOT NULL,
    detail   TEXT NOT NULL,
    PRIMARY KEY (tenant, run_id, agent_id),
    FOREIGN KEY (tenant, run_id) REFERENCES runs (tenant, run_id),
    FOREIGN KEY (tenant, agent_id) REFERENCES gateways (tenant, agent_id)
) STRICT, WITHOUT ROWID;
