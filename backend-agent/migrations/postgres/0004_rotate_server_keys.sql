-- usable from: 1
-- The keys that the server has, had and is to have, with the version of the pin set that each came in with, and of the
-- one that left it out again. Without a row, the configuration says which they are. A backend that does not know this
-- offers what is configured, under a version that gateways pass over.
CREATE TABLE server_pins (
    tenant     text   COLLATE "C" NOT NULL,
    pin        bytea  NOT NULL,
    state      text   NOT NULL,
    staged_in  bigint NOT NULL,
    retired_in bigint,
    since      bigint,
    PRIMARY KEY (pin, tenant)
);

-- Which key each backend shows, as it said last.
CREATE TABLE shown_pins (
    tenant   text   COLLATE "C" NOT NULL,
    shown_by text   COLLATE "C" NOT NULL,
    pin      bytea  NOT NULL,
    shown_at bigint NOT NULL,
    PRIMARY KEY (shown_by, tenant)
);
