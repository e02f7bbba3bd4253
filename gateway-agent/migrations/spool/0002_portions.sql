-- Ranges of sequence numbers whose records were appended together, by whom, and about how many bytes they take: so that
-- what local programs hand in can be held to a share of the file, and given up without anything of the agent's own.
CREATE TABLE portion (
    epoch    INTEGER NOT NULL REFERENCES epoch (id),
    from_seq INTEGER NOT NULL,
    to_seq   INTEGER NOT NULL,
    bytes    INTEGER NOT NULL CHECK (bytes >= 0),
    local    INTEGER NOT NULL CHECK (local IN (0, 1)),
    PRIMARY KEY (epoch, from_seq),
    CHECK (to_seq >= from_seq)
) STRICT, WITHOUT ROWID;

-- The oldest of local programs.
CREATE INDEX portion_local ON portion (epoch, from_seq) WHERE local = 1;

-- Nobody knows any more who appended what is there; it counts as the agent's own.
INSERT INTO portion (epoch, from_seq, to_seq, bytes, local)
SELECT epoch, min(seq), max(seq), sum(length(CAST(body AS BLOB)) + 32), 0 FROM record GROUP BY epoch;

ALTER TABLE usage ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0 CHECK (bytes >= 0);
ALTER TABLE usage ADD COLUMN local_bytes INTEGER NOT NULL DEFAULT 0 CHECK (local_bytes >= 0);
UPDATE usage SET bytes = (SELECT coalesce(sum(bytes), 0) FROM portion);
