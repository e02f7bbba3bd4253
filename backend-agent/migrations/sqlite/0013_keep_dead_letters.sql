-- Commands that were delivered as often as they may be and never accepted: one row each until somebody has decided about
-- it, and a while longer. Retried: a run that does the same again, which knows what it is for.
CREATE TABLE dead_letters (
    tenant       TEXT    NOT NULL,
    command_id   TEXT    NOT NULL,
    agent_id     TEXT    NOT NULL,
    dead_at      INTEGER NOT NULL,
    -- When and by whom it was retried or discarded; discarded where there is no run.
    resolved_at  INTEGER,
    resolved_by  TEXT,
    retry_run_id TEXT,
    PRIMARY KEY (tenant, command_id),
    FOREIGN KEY (tenant, command_id) REFERENCES commands (tenant, command_id),
    CHECK ((resolved_at IS NULL) = (resolved_by IS NULL)),
    CHECK (retry_run_id IS NULL OR resolved_at IS NOT NULL)
) STRICT, WITHOUT ROWID;

CREATE INDEX dead_letters_by_gateway ON dead_letters (tenant, agent_id, command_id);
CREATE INDEX open_dead_letters ON dead_letters (tenant, command_id) WHERE resolved_at IS NULL;
CREATE INDEX dead_letters_by_resolution ON dead_letters (tenant, resolved_at) WHERE resolved_at IS NOT NULL;

ALTER TABLE runs ADD COLUMN retry_of TEXT;

-- What died before: of each gateway the latest, as many as are kept.
INSERT INTO dead_letters (tenant, command_id, agent_id, dead_at)
SELECT tenant, command_id, agent_id, finished_at FROM (
    SELECT tenant, command_id, agent_id, finished_at,
           row_number() OVER (PARTITION BY tenant, agent_id ORDER BY command_id DESC) AS place
    FROM commands WHERE state = 'dead'
) WHERE place <= 100;
