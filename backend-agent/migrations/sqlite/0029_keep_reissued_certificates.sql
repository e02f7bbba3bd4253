-- usable from: 19
-- Of a key whose certificate was reissued at the door, which takes the place of the one before: that one, so that
-- whoever shows it or was recorded with it is known as the same key. A backend that does not know this keeps none.
CREATE TABLE reissued (
    tenant      TEXT    NOT NULL,
    agent_id    TEXT    NOT NULL,
    fingerprint BLOB    NOT NULL,
    spki        BLOB    NOT NULL,
    serial      TEXT    NOT NULL,
    not_after   INTEGER NOT NULL,
    reissued_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, agent_id, fingerprint),
    FOREIGN KEY (tenant, agent_id) REFERENCES gateways (tenant, agent_id)
) STRICT, WITHOUT ROWID;

-- What it is like at a site of ten thousand gateways, for the planner: see the step before this one.
INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES ('reissued', 'reissued', '20000 20000 2 1');
ANALYZE sqlite_schema;
