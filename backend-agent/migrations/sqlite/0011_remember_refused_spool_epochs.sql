-- Up to which record spool epochs were refused as one too many, of the latest few of each gateway: what is said of them
-- again is not counted again. One alone was remembered, and two in alternation were counted each time.
CREATE TABLE telemetry_refused_epochs (
    tenant      TEXT    NOT NULL,
    agent_id    TEXT    NOT NULL,
    spool_epoch TEXT    NOT NULL,
    seq         INTEGER NOT NULL CHECK (seq >= 0),
    refused_at  INTEGER NOT NULL,
    PRIMARY KEY (tenant, agent_id, spool_epoch)
) STRICT, WITHOUT ROWID;

INSERT INTO telemetry_refused_epochs (tenant, agent_id, spool_epoch, seq, refused_at)
SELECT tenant, agent_id, refused_epoch, refused_seq, 0 FROM telemetry_usage WHERE refused_epoch IS NOT NULL;

ALTER TABLE telemetry_usage DROP COLUMN refused_seq;
ALTER TABLE telemetry_usage DROP COLUMN refused_epoch;
