-- Tickets by which machines become gateways; of a ticket's secret only the digest is here.
CREATE TABLE tickets (
    tenant     TEXT    NOT NULL,
    ticket_id  TEXT    NOT NULL,
    sha256     BLOB    NOT NULL CHECK (length(sha256) = 32),
    uses_max   INTEGER NOT NULL CHECK (uses_max > 0),
    uses       INTEGER NOT NULL DEFAULT 0 CHECK (uses BETWEEN 0 AND uses_max),
    -- Attempts that knew the ticket and were refused.
    refusals   INTEGER NOT NULL DEFAULT 0,
    labels     TEXT    NOT NULL,
    naming     TEXT    NOT NULL,
    networks   TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    created_by TEXT    NOT NULL,
    expires_at INTEGER NOT NULL,
    revoked_at INTEGER,
    PRIMARY KEY (tenant, ticket_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX tickets_by_end ON tickets (tenant, expires_at);

-- Which gateway came of which key, so that a machine that lost the answer gets the same one again.
CREATE TABLE enrolments (
    tenant      TEXT    NOT NULL,
    spki        BLOB    NOT NULL CHECK (length(spki) = 32),
    ticket_id   TEXT    NOT NULL,
    agent_id    TEXT    NOT NULL,
    install_id  TEXT    NOT NULL,
    certificate TEXT    NOT NULL,
    enrolled_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, spki),
    FOREIGN KEY (tenant, ticket_id) REFERENCES tickets (tenant, ticket_id),
    FOREIGN KEY (tenant, agent_id) REFERENCES gateways (tenant, agent_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX enrolments_by_ticket ON enrolments (tenant, ticket_id);

-- Challenges that wait for their redemption, each good for one.
CREATE TABLE enrolment_challenges (
    tenant     TEXT    NOT NULL,
    challenge  BLOB    NOT NULL CHECK (length(challenge) = 32),
    ticket_id  TEXT    NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, challenge)
) STRICT, WITHOUT ROWID;

CREATE INDEX enrolment_challenges_by_end ON enrolment_challenges (tenant, expires_at);
