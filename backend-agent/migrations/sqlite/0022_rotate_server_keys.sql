-- usable from: 19
-- The keys that the server has, had and is to have, with the version of the pin set that each came in with, and of the
-- one that left it out again. Without a row, the configuration says which they are. A backend that does not know this
-- offers what is configured, under a version that gateways pass over.
CREATE TABLE server_pins (
    tenant     TEXT    NOT NULL,
    pin        BLOB    NOT NULL,
    state      TEXT    NOT NULL,
    staged_in  INTEGER NOT NULL,
    retired_in INTEGER,
    since      INTEGER,
    PRIMARY KEY (tenant, pin)
) STRICT, WITHOUT ROWID;

-- Which key each backend shows, as it said last.
CREATE TABLE shown_pins (
    tenant   TEXT    NOT NULL,
    shown_by TEXT    NOT NULL,
    pin      BLOB    NOT NULL,
    shown_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, shown_by)
) STRICT, WITHOUT ROWID;
