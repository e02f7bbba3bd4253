-- The commands of each tenant that are not final, which its bound of submissions is held against: a sum over all gateways
-- would cost more with each of them. It is written last in a transaction.
CREATE TABLE open_commands (
    tenant   TEXT    NOT NULL PRIMARY KEY,
    commands INTEGER NOT NULL CHECK (commands >= 0)
) STRICT, WITHOUT ROWID;

INSERT INTO open_commands (tenant, commands)
SELECT tenant, count(*) FROM commands WHERE finished_at IS NULL GROUP BY tenant;
