-- One row for each process that appended records which are still waiting, and for the last few whose are all delivered.
CREATE TABLE epoch (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    agent_run_id TEXT    NOT NULL UNIQUE,
    next_seq     INTEGER NOT NULL CHECK (next_seq >= 1),
    acknowledged INTEGER NOT NULL CHECK (acknowledged >= 0 AND acknowledged < next_seq)
) STRICT;

CREATE TABLE record (
    epoch INTEGER NOT NULL REFERENCES epoch (id),
    seq   INTEGER NOT NULL,
    body  TEXT    NOT NULL,
    PRIMARY KEY (epoch, seq)
) STRICT, WITHOUT ROWID;

-- Ranges of sequence numbers whose records were given up and that the backend has not been told yet.
CREATE TABLE gap (
    epoch    INTEGER NOT NULL REFERENCES epoch (id),
    from_seq INTEGER NOT NULL,
    to_seq   INTEGER NOT NULL,
    reason   TEXT    NOT NULL,
    PRIMARY KEY (epoch, from_seq),
    CHECK (to_seq >= from_seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE usage (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    records  INTEGER NOT NULL CHECK (records >= 0),
    dropped  INTEGER NOT NULL CHECK (dropped >= 0)
) STRICT;

INSERT INTO usage (only_row, records, dropped) VALUES (1, 0, 0);
