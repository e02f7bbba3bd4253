-- What the reference relay commits: each command once.
CREATE TABLE command (
    id    TEXT PRIMARY KEY,
    agent TEXT NOT NULL
) STRICT, WITHOUT ROWID;
