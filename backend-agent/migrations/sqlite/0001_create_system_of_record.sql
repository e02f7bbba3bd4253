-- The system of record. Every key begins with the tenant. Times are microseconds since the Unix epoch, ids are
-- hyphenated lower-case UUIDs, digests are 32 bytes.

CREATE TABLE gateways (
    tenant            TEXT    NOT NULL,
    agent_id          TEXT    NOT NULL,
    name              TEXT    NOT NULL,
    created_at        INTEGER NOT NULL,
    revoked_at        INTEGER,
    -- The identity row of common::admission.
    confirmed         INTEGER NOT NULL DEFAULT 0,
    issued            INTEGER NOT NULL DEFAULT 0,
    key_generation    INTEGER NOT NULL,
    last_agent_run_id TEXT,
    next_order        INTEGER NOT NULL DEFAULT 1,
    low_water         INTEGER NOT NULL DEFAULT 0,
    -- Commands that are not final: what the bound of submissions is held against.
    open_commands     INTEGER NOT NULL DEFAULT 0 CHECK (open_commands >= 0),
    -- The epoch of the confirmed session while there is one.
    session_epoch     INTEGER,
    last_seen_at      INTEGER,
    agent_version     TEXT,
    pin_set_version   INTEGER NOT NULL DEFAULT 0,
    round_trip_us     INTEGER,
    clock_skew_ms     INTEGER,
    spool_records     INTEGER NOT NULL DEFAULT 0,
    spool_bytes       INTEGER NOT NULL DEFAULT 0,
    commands_running  INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant, agent_id),
    UNIQUE (tenant, name),
    CHECK (confirmed <= issued)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER gateways_are_never_deleted BEFORE DELETE ON gateways
BEGIN
    SELECT RAISE(ABORT, 'an agent id is never used again');
END;

CREATE TABLE labels (
    tenant   TEXT NOT NULL,
    agent_id TEXT NOT NULL,
    key      TEXT NOT NULL,
    source   TEXT NOT NULL CHECK (source IN ('operator', 'gateway')),
    value    TEXT NOT NULL,
    PRIMARY KEY (tenant, agent_id, key, source),
    FOREIGN KEY (tenant, agent_id) REFERENCES gateways (tenant, agent_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE certificates (
    tenant        TEXT    NOT NULL,
    spki          BLOB    NOT NULL,
    agent_id      TEXT    NOT NULL,
    serial        TEXT    NOT NULL,
    not_after     INTEGER NOT NULL,
    fingerprint   BLOB    NOT NULL,
    registered_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, spki),
    FOREIGN KEY (tenant, agent_id) REFERENCES gateways (tenant, agent_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE sessions (
    tenant       TEXT    NOT NULL,
    agent_id     TEXT    NOT NULL,
    epoch        INTEGER NOT NULL,
    session_id   TEXT    NOT NULL,
    agent_run_id TEXT    NOT NULL,
    install_id   TEXT    NOT NULL,
    boot_id      TEXT    NOT NULL,
    peer_address TEXT    NOT NULL,
    fingerprint  BLOB    NOT NULL,
    -- What HELLO says about the gateway; it takes effect with CONFIRM.
    agent_version   TEXT    NOT NULL,
    labels          TEXT    NOT NULL,
    pin_set_version INTEGER NOT NULL,
    admitted_at  INTEGER NOT NULL,
    confirmed_at INTEGER,
    ended_at     INTEGER,
    code         TEXT,
    PRIMARY KEY (tenant, agent_id, epoch),
    FOREIGN KEY (tenant, agent_id) REFERENCES gateways (tenant, agent_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX sessions_by_admission ON sessions (tenant, admitted_at);

-- One row for each process that was refused as the second holder of an identity.
CREATE TABLE forks (
    tenant                TEXT    NOT NULL,
    agent_id              TEXT    NOT NULL,
    refused_agent_run_id  TEXT    NOT NULL,
    at                    INTEGER NOT NULL,
    times                 INTEGER NOT NULL DEFAULT 1,
    refused_epoch         INTEGER NOT NULL,
    refused_peer_address  TEXT    NOT NULL,
    refused_fingerprint   BLOB    NOT NULL,
    refused_install_id    TEXT    NOT NULL,
    refused_boot_id       TEXT    NOT NULL,
    accepted_epoch        INTEGER,
    accepted_peer_address TEXT,
    accepted_fingerprint  BLOB,
    accepted_install_id   TEXT,
    accepted_boot_id      TEXT,
    accepted_agent_run_id TEXT,
    PRIMARY KEY (tenant, agent_id, refused_agent_run_id),
    FOREIGN KEY (tenant, agent_id) REFERENCES gateways (tenant, agent_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE catalogues (
    tenant      TEXT    NOT NULL,
    agent_id    TEXT    NOT NULL,
    digest      TEXT    NOT NULL,
    reported_at INTEGER NOT NULL,
    entries     TEXT    NOT NULL,
    PRIMARY KEY (tenant, agent_id),
    FOREIGN KEY (tenant, agent_id) REFERENCES gateways (tenant, agent_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE runs (
    tenant              TEXT    NOT NULL,
    run_id              TEXT    NOT NULL,
    name                TEXT    NOT NULL,
    arguments           TEXT    NOT NULL,
    deadline            INTEGER NOT NULL,
    traceparent         TEXT,
    reason              TEXT,
    submitted_by        TEXT    NOT NULL,
    created_at          INTEGER NOT NULL,
    cancel_requested_at INTEGER,
    finished_at         INTEGER,
    open_commands       INTEGER NOT NULL CHECK (open_commands >= 0),
    PRIMARY KEY (tenant, run_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX open_runs ON runs (tenant) WHERE finished_at IS NULL;

CREATE TABLE commands (
    tenant              TEXT    NOT NULL,
    command_id          TEXT    NOT NULL,
    run_id              TEXT    NOT NULL,
    agent_id            TEXT    NOT NULL,
    order_no            INTEGER NOT NULL,
    state               TEXT    NOT NULL,
    idempotent          INTEGER NOT NULL,
    risk                TEXT    NOT NULL,
    timeout_ms          INTEGER NOT NULL,
    attempt             INTEGER NOT NULL DEFAULT 0,
    available_at        INTEGER NOT NULL,
    deadline            INTEGER NOT NULL,
    created_at          INTEGER NOT NULL,
    -- The process that holds the start permit.
    released_to         TEXT,
    released_at         INTEGER,
    started_at          INTEGER,
    -- Set exactly when the state is final.
    finished_at         INTEGER,
    cancel_requested_at INTEGER,
    result              TEXT,
    late_outcome        TEXT,
    reason              TEXT,
    PRIMARY KEY (tenant, command_id),
    UNIQUE (tenant, agent_id, order_no),
    FOREIGN KEY (tenant, agent_id) REFERENCES gateways (tenant, agent_id),
    FOREIGN KEY (tenant, run_id) REFERENCES runs (tenant, run_id),
    CHECK ((finished_at IS NULL) = (state IN ('queued', 'dispatched', 'released', 'running')))
) STRICT, WITHOUT ROWID;

-- A final state never changes, whatever the program does.
CREATE TRIGGER commands_stay_final BEFORE UPDATE OF state ON commands
WHEN OLD.finished_at IS NOT NULL AND NEW.state <> OLD.state
BEGIN
    SELECT RAISE(ABORT, 'a final state never changes');
END;

CREATE INDEX commands_by_run ON commands (tenant, run_id, command_id);
CREATE INDEX commands_by_run_and_state ON commands (tenant, run_id, state);
CREATE INDEX open_commands_by_gateway ON commands (tenant, agent_id, order_no) WHERE finished_at IS NULL;
CREATE INDEX queued_commands_by_gateway ON commands (tenant, agent_id, order_no) WHERE state = 'queued';
CREATE INDEX open_commands_by_deadline ON commands (tenant, deadline) WHERE finished_at IS NULL;

-- Beside the commands, so that moving one never rewrites its output.
CREATE TABLE command_outputs (
    tenant      TEXT    NOT NULL,
    command_id  TEXT    NOT NULL,
    stdout_head BLOB    NOT NULL,
    stdout_tail BLOB    NOT NULL,
    stdout_cut  INTEGER NOT NULL,
    stderr_head BLOB    NOT NULL,
    stderr_tail BLOB    NOT NULL,
    stderr_cut  INTEGER NOT NULL,
    PRIMARY KEY (tenant, command_id),
    FOREIGN KEY (tenant, command_id) REFERENCES commands (tenant, command_id)
) STRICT;

-- Outcomes of commands that this database does not know: it was rolled back.
CREATE TABLE orphan_results (
    tenant      TEXT    NOT NULL,
    agent_id    TEXT    NOT NULL,
    command_id  TEXT    NOT NULL,
    received_at INTEGER NOT NULL,
    outcome     TEXT    NOT NULL,
    PRIMARY KEY (tenant, agent_id, command_id),
    FOREIGN KEY (tenant, agent_id) REFERENCES gateways (tenant, agent_id)
) STRICT;

CREATE TABLE idempotency_keys (
    tenant       TEXT    NOT NULL,
    principal    TEXT    NOT NULL,
    route        TEXT    NOT NULL,
    key          TEXT    NOT NULL,
    request_hash BLOB    NOT NULL,
    run_id       TEXT    NOT NULL,
    created_at   INTEGER NOT NULL,
    PRIMARY KEY (tenant, principal, route, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX idempotency_keys_by_age ON idempotency_keys (tenant, created_at);

CREATE TABLE telemetry (
    tenant      TEXT    NOT NULL,
    agent_id    TEXT    NOT NULL,
    spool_epoch TEXT    NOT NULL,
    seq         INTEGER NOT NULL,
    stream      TEXT    NOT NULL,
    observed_at INTEGER NOT NULL,
    stored_at   INTEGER NOT NULL,
    fields      TEXT    NOT NULL,
    PRIMARY KEY (tenant, agent_id, spool_epoch, seq)
) STRICT, WITHOUT ROWID;

-- The primary key follows in an index of a table without row ids, so both serve the cursor's whole order.
CREATE INDEX telemetry_by_stream ON telemetry (tenant, agent_id, stream, observed_at);
CREATE INDEX telemetry_by_time ON telemetry (tenant, agent_id, observed_at);

CREATE TABLE telemetry_streams (
    tenant   TEXT    NOT NULL,
    agent_id TEXT    NOT NULL,
    stream   TEXT    NOT NULL,
    newest   INTEGER NOT NULL,
    PRIMARY KEY (tenant, agent_id, stream)
) STRICT, WITHOUT ROWID;

CREATE TABLE telemetry_positions (
    tenant      TEXT    NOT NULL,
    agent_id    TEXT    NOT NULL,
    spool_epoch TEXT    NOT NULL,
    seq         INTEGER NOT NULL,
    PRIMARY KEY (tenant, agent_id, spool_epoch)
) STRICT, WITHOUT ROWID;

CREATE TABLE telemetry_gaps (
    tenant      TEXT    NOT NULL,
    agent_id    TEXT    NOT NULL,
    spool_epoch TEXT    NOT NULL,
    from_seq    INTEGER NOT NULL,
    to_seq      INTEGER NOT NULL,
    reason      TEXT    NOT NULL,
    stored_at   INTEGER NOT NULL,
    PRIMARY KEY (tenant, agent_id, spool_epoch, from_seq),
    CHECK (from_seq <= to_seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE telemetry_refusals (
    tenant      TEXT    NOT NULL,
    agent_id    TEXT    NOT NULL,
    spool_epoch TEXT    NOT NULL,
    reason      TEXT    NOT NULL,
    records     INTEGER NOT NULL,
    PRIMARY KEY (tenant, agent_id, spool_epoch, reason)
) STRICT, WITHOUT ROWID;

CREATE TABLE api_keys (
    tenant       TEXT    NOT NULL,
    id           TEXT    NOT NULL,
    name         TEXT    NOT NULL,
    sha256       BLOB    NOT NULL,
    scopes       TEXT    NOT NULL,
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER,
    revoked_at   INTEGER,
    last_used_at INTEGER,
    PRIMARY KEY (tenant, id),
    UNIQUE (tenant, sha256)
) STRICT, WITHOUT ROWID;

CREATE TABLE audit_log (
    tenant     TEXT    NOT NULL,
    seq        INTEGER NOT NULL,
    at         INTEGER NOT NULL,
    actor_kind TEXT    NOT NULL,
    actor_id   TEXT    NOT NULL,
    action     TEXT    NOT NULL,
    object     TEXT    NOT NULL,
    outcome    TEXT    NOT NULL,
    detail     TEXT    NOT NULL,
    request_id TEXT,
    PRIMARY KEY (tenant, seq)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER audit_log_is_never_changed BEFORE UPDATE ON audit_log
BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only');
END;

CREATE TRIGGER audit_log_is_never_deleted BEFORE DELETE ON audit_log
BEGIN
    SELECT RAISE(ABORT, 'the audit log is append-only');
END;

-- One row that the health check writes, so that "healthy" means that a commit went through.
CREATE TABLE heartbeat (
    tenant TEXT    NOT NULL PRIMARY KEY,
    beats  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
