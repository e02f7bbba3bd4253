-- The system of record. Every key begins with the tenant. Times are microseconds on the time line (common::timeline), ids
-- are hyphenated lower-case UUIDs, digests are 32 bytes. Text is compared byte by byte, as the embedded store does it.

CREATE TABLE gateways (
    tenant            text   COLLATE "C" NOT NULL,
    agent_id          text   COLLATE "C" NOT NULL,
    name              text   COLLATE "C" NOT NULL,
    created_at        bigint NOT NULL,
    revoked_at        bigint,
    -- The identity row of common::admission.
    confirmed         bigint NOT NULL DEFAULT 0,
    issued            bigint NOT NULL DEFAULT 0,
    key_generation    bigint NOT NULL,
    last_agent_run_id text   COLLATE "C",
    next_order        bigint NOT NULL DEFAULT 1,
    low_water         bigint NOT NULL DEFAULT 0,
    -- Commands that are not final: what the bound of submissions is held against.
    open_commands     bigint NOT NULL DEFAULT 0 CHECK (open_commands >= 0),
    -- The epoch of the confirmed session while there is one.
    session_epoch     bigint,
    last_seen_at      bigint,
    agent_version     text,
    pin_set_version   bigint NOT NULL DEFAULT 0,
    round_trip_us     bigint,
    clock_skew_ms     bigint,
    spool_records     bigint NOT NULL DEFAULT 0,
    spool_bytes       bigint NOT NULL DEFAULT 0,
    commands_running  bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant, agent_id),
    UNIQUE (tenant, name),
    CHECK (confirmed <= issued)
) WITH (fillfactor = 70);

-- Counters of these rows change with every command; room in each page keeps the new row beside the old one.

CREATE TABLE labels (
    tenant   text COLLATE "C" NOT NULL,
    agent_id text COLLATE "C" NOT NULL,
    key      text COLLATE "C" NOT NULL,
    source   text COLLATE "C" NOT NULL CHECK (source IN ('operator', 'gateway')),
    value    text COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant, agent_id, key, source),
    FOREIGN KEY (tenant, agent_id) REFERENCES gateways (tenant, agent_id)
);

CREATE TABLE certificates (
    tenant        text   COLLATE "C" NOT NULL,
    spki          bytea  NOT NULL,
    agent_id      text   COLLATE "C" NOT NULL,
    serial        text   NOT NULL,
    not_after     bigint NOT NULL,
    fingerprint   bytea  NOT NULL,
    registered_at bigint NOT NULL,
    PRIMARY KEY (tenant, spki),
    FOREIGN KEY (tenant, agent_id) REFERENCES gateways (tenant, agent_id)
);

CREATE TABLE sessions (
    tenant       text   COLLATE "C" NOT NULL,
    agent_id     text   COLLATE "C" NOT NULL,
    epoch        bigint NOT NULL,
    session_id   text   COLLATE "C" NOT NULL,
    agent_run_id text   COLLATE "C" NOT NULL,
    install_id   text   COLLATE "C" NOT NULL,
    boot_id      text   COLLATE "C" NOT NULL,
    peer_address text   NOT NULL,
    fingerprint  bytea  NOT NULL,
    -- What HELLO says about the gateway; it takes effect with CONFIRM.
    agent_version   text   NOT NULL,
    labels          json   NOT NULL,
    pin_set_version bigint NOT NULL,
    admitted_at  bigint NOT NULL,
    confirmed_at bigint,
    ended_at     bigint,
    code         text,
    PRIMARY KEY (tenant, agent_id, epoch),
    FOREIGN KEY (tenant, agent_id) REFERENCES gateways (tenant, agent_id)
);

CREATE INDEX sessions_by_admission ON sessions (tenant, admitted_at);
CREATE INDEX open_sessions ON sessions (tenant) WHERE ended_at IS NULL;

-- One row for each process that was refused as the second holder of an identity.
CREATE TABLE forks (
    tenant                text   COLLATE "C" NOT NULL,
    agent_id              text   COLLATE "C" NOT NULL,
    refused_agent_run_id  text   COLLATE "C" NOT NULL,
    at                    bigint NOT NULL,
    times                 bigint NOT NULL DEFAULT 1,
    refused_epoch         bigint NOT NULL,
    refused_peer_address  text   NOT NULL,
    refused_fingerprint   bytea  NOT NULL,
    refused_install_id    text   NOT NULL,
    refused_boot_id       text   NOT NULL,
    accepted_epoch        bigint,
    accepted_peer_address text,
    accepted_fingerprint  bytea,
    accepted_install_id   text,
    accepted_boot_id      text,
    accepted_agent_run_id text,
    -- Since when each of the two holders is known.
    first_at              bigint,
    accepted_since        bigint,
    PRIMARY KEY (tenant, agent_id, refused_agent_run_id),
    FOREIGN KEY (tenant, agent_id) REFERENCES gateways (tenant, agent_id)
);

CREATE INDEX forks_by_time ON forks (tenant, at, agent_id);

CREATE TABLE catalogues (
    tenant      text   COLLATE "C" NOT NULL,
    agent_id    text   COLLATE "C" NOT NULL,
    digest      text   NOT NULL,
    reported_at bigint NOT NULL,
    entries     json   NOT NULL,
    PRIMARY KEY (tenant, agent_id),
    FOREIGN KEY (tenant, agent_id) REFERENCES gateways (tenant, agent_id)
);

CREATE TABLE runs (
    tenant              text   COLLATE "C" NOT NULL,
    run_id              text   COLLATE "C" NOT NULL,
    name                text   NOT NULL,
    arguments           json   NOT NULL,
    deadline            bigint NOT NULL,
    traceparent         text,
    reason              text,
    submitted_by        text   COLLATE "C" NOT NULL,
    created_at          bigint NOT NULL,
    cancel_requested_at bigint,
    finished_at         bigint,
    open_commands       bigint NOT NULL CHECK (open_commands >= 0),
    -- Gateways that it was meant for and that got no command.
    skipped             bigint NOT NULL DEFAULT 0 CHECK (skipped >= 0),
    -- The time limit that its operator gave; null where the catalogues' alone hold.
    timeout_ms          bigint CHECK (timeout_ms > 0),
    PRIMARY KEY (tenant, run_id)
) WITH (fillfactor = 85);

CREATE INDEX open_runs ON runs (tenant) WHERE finished_at IS NULL;

CREATE TABLE run_skips (
    tenant   text COLLATE "C" NOT NULL,
    run_id   text COLLATE "C" NOT NULL,
    agent_id text COLLATE "C" NOT NULL,
    code     text NOT NULL,
    detail   text NOT NULL,
    PRIMARY KEY (tenant, run_id, agent_id),
    FOREIGN KEY (tenant, run_id) REFERENCES runs (tenant, run_id),
    FOREIGN KEY (tenant, agent_id) REFERENCES gateways (tenant, agent_id)
);

CREATE TABLE commands (
    tenant              text    COLLATE "C" NOT NULL,
    command_id          text    COLLATE "C" NOT NULL,
    run_id              text    COLLATE "C" NOT NULL,
    agent_id            text    COLLATE "C" NOT NULL,
    order_no            bigint  NOT NULL,
    state               text    COLLATE "C" NOT NULL,
    idempotent          boolean NOT NULL,
    risk                text    NOT NULL,
    timeout_ms          bigint  NOT NULL,
    attempt             bigint  NOT NULL DEFAULT 0,
    available_at        bigint  NOT NULL,
    deadline            bigint  NOT NULL,
    created_at          bigint  NOT NULL,
    -- The process that holds the start permit.
    released_to         text    COLLATE "C",
    released_at         bigint,
    started_at          bigint,
    -- Set exactly when the state is final.
    finished_at         bigint,
    cancel_requested_at bigint,
    result              json,
    late_outcome        json,
    reason              text,
    PRIMARY KEY (tenant, command_id),
    UNIQUE (tenant, agent_id, order_no),
    FOREIGN KEY (tenant, agent_id) REFERENCES gateways (tenant, agent_id),
    FOREIGN KEY (tenant, run_id) REFERENCES runs (tenant, run_id),
    CHECK ((finished_at IS NULL) = (state IN ('queued', 'dispatched', 'released', 'running')))
) WITH (fillfactor = 85);

CREATE INDEX commands_by_run ON commands (tenant, run_id, command_id);
CREATE INDEX open_commands_by_gateway ON commands (tenant, agent_id, order_no) WHERE finished_at IS NULL;
CREATE INDEX queued_commands_by_gateway ON commands (tenant, agent_id, order_no) WHERE state = 'queued';
CREATE INDEX open_commands_by_deadline ON commands (tenant, deadline) WHERE finished_at IS NULL;

-- A final state never changes, whatever the program does.
CREATE FUNCTION refuse_change_of_final_state() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a final state never changes';
END $$;

CREATE TRIGGER commands_stay_final BEFORE UPDATE OF state ON commands FOR EACH ROW
WHEN (OLD.finished_at IS NOT NULL AND NEW.state <> OLD.state) EXECUTE FUNCTION refuse_change_of_final_state();

CREATE FUNCTION refuse_deletion_of_gateways() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'an agent id is never used again';
END $$;

CREATE TRIGGER gateways_are_never_deleted BEFORE DELETE OR TRUNCATE ON gateways FOR EACH STATEMENT
EXECUTE FUNCTION refuse_deletion_of_gateways();

-- Beside the commands, so that moving one never rewrites its output.
CREATE TABLE command_outputs (
    tenant      text   COLLATE "C" NOT NULL,
    command_id  text   COLLATE "C" NOT NULL,
    stdout_head bytea  NOT NULL,
    stdout_tail bytea  NOT NULL,
    stdout_cut  bigint NOT NULL,
    stderr_head bytea  NOT NULL,
    stderr_tail bytea  NOT NULL,
    stderr_cut  bigint NOT NULL,
    PRIMARY KEY (tenant, command_id),
    FOREIGN KEY (tenant, command_id) REFERENCES commands (tenant, command_id)
);

-- Outcomes of commands that this database does not know: it was rolled back. Bounded by their number and their bytes.
CREATE TABLE orphan_results (
    tenant      text   COLLATE "C" NOT NULL,
    agent_id    text   COLLATE "C" NOT NULL,
    command_id  text   COLLATE "C" NOT NULL,
    received_at bigint NOT NULL,
    outcome     json   NOT NULL,
    bytes       bigint NOT NULL CHECK (bytes >= 0),
    PRIMARY KEY (tenant, agent_id, command_id),
    FOREIGN KEY (tenant, agent_id) REFERENCES gateways (tenant, agent_id)
);

CREATE INDEX orphan_results_by_gateway ON orphan_results (tenant, agent_id, received_at, command_id) INCLUDE (bytes);
CREATE INDEX orphan_results_by_time ON orphan_results (tenant, received_at, agent_id);

CREATE TABLE idempotency_keys (
    tenant       text   COLLATE "C" NOT NULL,
    principal    text   COLLATE "C" NOT NULL,
    route        text   COLLATE "C" NOT NULL,
    key          text   COLLATE "C" NOT NULL,
    request_hash bytea  NOT NULL,
    run_id       text   COLLATE "C" NOT NULL,
    created_at   bigint NOT NULL,
    PRIMARY KEY (tenant, principal, route, key)
);

CREATE INDEX idempotency_keys_by_age ON idempotency_keys (tenant, created_at);

-- The commands of each tenant that are not final, which its bound of submissions is held against. In several rows, each
-- for some of the connections: one row would be held by each transaction until it is on the disk. One alone may be
-- below zero.
CREATE TABLE open_commands (
    tenant   text     COLLATE "C" NOT NULL,
    share    smallint NOT NULL,
    commands bigint   NOT NULL,
    PRIMARY KEY (tenant, share)
) WITH (fillfactor = 20);

-- How much each gateway may still add to what is kept for good: when its whole allowance is back, on the time line, and
-- how many were left out since the last that was kept.
CREATE TABLE gateway_budgets (
    tenant   text   COLLATE "C" NOT NULL,
    agent_id text   COLLATE "C" NOT NULL,
    kind     text   COLLATE "C" NOT NULL,
    full_at  bigint NOT NULL,
    left_out bigint NOT NULL CHECK (left_out >= 0),
    PRIMARY KEY (tenant, agent_id, kind)
);

CREATE TABLE telemetry (
    tenant       text   COLLATE "C" NOT NULL,
    agent_id     text   COLLATE "C" NOT NULL,
    spool_epoch  text   COLLATE "C" NOT NULL,
    seq          bigint NOT NULL,
    stream       text   COLLATE "C" NOT NULL,
    observed_at  bigint NOT NULL,
    stored_at    bigint NOT NULL,
    fields       json   NOT NULL,
    -- Whose clock says when it was observed, and what the gateway's said where that is not what is stored.
    time_source  text   NOT NULL,
    gateway_time bigint,
    PRIMARY KEY (tenant, agent_id, spool_epoch, seq)
);

CREATE INDEX telemetry_by_stream ON telemetry (tenant, agent_id, stream, observed_at, spool_epoch, seq);
CREATE INDEX telemetry_by_time ON telemetry (tenant, agent_id, observed_at, spool_epoch, seq);

CREATE TABLE telemetry_streams (
    tenant   text   COLLATE "C" NOT NULL,
    agent_id text   COLLATE "C" NOT NULL,
    stream   text   COLLATE "C" NOT NULL,
    newest   bigint NOT NULL,
    PRIMARY KEY (tenant, agent_id, stream)
);

CREATE TABLE telemetry_positions (
    tenant      text   COLLATE "C" NOT NULL,
    agent_id    text   COLLATE "C" NOT NULL,
    spool_epoch text   COLLATE "C" NOT NULL,
    seq         bigint NOT NULL,
    PRIMARY KEY (tenant, agent_id, spool_epoch)
);

CREATE TABLE telemetry_gaps (
    tenant      text   COLLATE "C" NOT NULL,
    agent_id    text   COLLATE "C" NOT NULL,
    spool_epoch text   COLLATE "C" NOT NULL,
    from_seq    bigint NOT NULL,
    to_seq      bigint NOT NULL,
    reason      text   NOT NULL,
    stored_at   bigint NOT NULL,
    PRIMARY KEY (tenant, agent_id, spool_epoch, from_seq),
    CHECK (from_seq <= to_seq)
);

CREATE TABLE telemetry_refusals (
    tenant      text   COLLATE "C" NOT NULL,
    agent_id    text   COLLATE "C" NOT NULL,
    spool_epoch text   COLLATE "C" NOT NULL,
    reason      text   COLLATE "C" NOT NULL,
    records     bigint NOT NULL,
    first_at    bigint,
    last_at     bigint,
    PRIMARY KEY (tenant, agent_id, spool_epoch, reason)
);

-- What a gateway delivered on one day, which its bounds are held against; its streams are counted for good.
CREATE TABLE telemetry_usage (
    tenant   text   COLLATE "C" NOT NULL,
    agent_id text   COLLATE "C" NOT NULL,
    day      bigint NOT NULL,
    epochs   bigint NOT NULL,
    records  bigint NOT NULL,
    bytes    bigint NOT NULL,
    gaps     bigint NOT NULL,
    streams  bigint NOT NULL,
    PRIMARY KEY (tenant, agent_id)
);

-- Up to which record spool epochs were refused as one too many, of the latest few of each gateway: what is said of them
-- again is not counted again.
CREATE TABLE telemetry_refused_epochs (
    tenant      text   COLLATE "C" NOT NULL,
    agent_id    text   COLLATE "C" NOT NULL,
    spool_epoch text   COLLATE "C" NOT NULL,
    seq         bigint NOT NULL CHECK (seq >= 0),
    refused_at  bigint NOT NULL,
    PRIMARY KEY (tenant, agent_id, spool_epoch)
);

CREATE TABLE api_keys (
    tenant       text   COLLATE "C" NOT NULL,
    id           text   COLLATE "C" NOT NULL,
    name         text   NOT NULL,
    sha256       bytea  NOT NULL,
    scopes       json   NOT NULL,
    created_at   bigint NOT NULL,
    expires_at   bigint,
    revoked_at   bigint,
    last_used_at bigint,
    PRIMARY KEY (tenant, id),
    UNIQUE (tenant, sha256)
);

-- Numbered by a sequence: the highest number and one more would be the same for two that append at once.
CREATE TABLE audit_log (
    tenant     text   COLLATE "C" NOT NULL,
    seq        bigint GENERATED ALWAYS AS IDENTITY,
    at         bigint NOT NULL,
    actor_kind text   COLLATE "C" NOT NULL,
    actor_id   text   COLLATE "C" NOT NULL,
    action     text   NOT NULL,
    object     text   COLLATE "C" NOT NULL,
    outcome    text   NOT NULL,
    detail     json   NOT NULL,
    request_id text,
    PRIMARY KEY (tenant, seq)
);

CREATE FUNCTION refuse_change_of_audit_log() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit log is append-only';
END $$;

CREATE TRIGGER audit_log_is_never_changed BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log FOR EACH STATEMENT
EXECUTE FUNCTION refuse_change_of_audit_log();

-- The anchor of the time line: a reading of the monotonic clock of one boot, and by how much the wall clock was ahead.
CREATE TABLE time_line (
    one        bigint NOT NULL PRIMARY KEY CHECK (one = 1),
    boot_id    text   NOT NULL,
    boottime   bigint NOT NULL CHECK (boottime >= 0),
    reads      bigint NOT NULL,
    wall_ahead bigint NOT NULL
);

-- Which backend has this database: each that takes it counts one up, and transactions of an earlier one are refused.
CREATE TABLE backend_generation (
    one        bigint NOT NULL PRIMARY KEY CHECK (one = 1),
    generation bigint NOT NULL
);

-- One row that the health check writes, so that "healthy" means that a commit went through.
CREATE TABLE heartbeat (
    tenant text   COLLATE "C" NOT NULL PRIMARY KEY,
    beats  bigint NOT NULL
);
