CREATE TABLE entry (
    command_id   TEXT    PRIMARY KEY NOT NULL,
    ordinal      INTEGER NOT NULL CHECK (ordinal >= 1),
    digest       BLOB    NOT NULL CHECK (length(digest) = 32),
    name         TEXT    NOT NULL,
    arguments    TEXT    NOT NULL,
    idempotent   INTEGER NOT NULL CHECK (idempotent IN (0, 1)),
    state        TEXT    NOT NULL CHECK (state IN ('accepted', 'started', 'finished', 'reported')),
    agent_run_id TEXT    NOT NULL,
    outcome      TEXT,
    CHECK ((state IN ('finished', 'reported')) = (outcome IS NOT NULL))
) STRICT;

CREATE INDEX entry_by_ordinal ON entry (ordinal);

-- What must never go backwards.
CREATE TABLE meta (
    only_row      INTEGER PRIMARY KEY CHECK (only_row = 1),
    low_water     INTEGER NOT NULL CHECK (low_water >= 0),
    highest_order INTEGER NOT NULL CHECK (highest_order >= 0),
    epoch         INTEGER NOT NULL CHECK (epoch >= 0),
    token         TEXT    NOT NULL
) STRICT;

INSERT INTO meta (only_row, low_water, highest_order, epoch, token) VALUES (1, 0, 0, 0, '');
