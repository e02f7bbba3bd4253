-- The time line that every other time in here is on, except those of the audit log and of gateways' own clocks: wall time
-- that never steps (common::timeline). Its anchor is a reading of the monotonic clock of one boot.
CREATE TABLE time_line (
    one        INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    boot_id    TEXT    NOT NULL,
    -- Microseconds of the monotonic clock of that boot, and what the line reads there.
    boottime   INTEGER NOT NULL CHECK (boottime >= 0),
    reads      INTEGER NOT NULL,
    -- By how much the wall clock was ahead there: the audit log is in wall time.
    wall_ahead INTEGER NOT NULL
) STRICT;

-- What was written so far is in wall time. Nothing of it may lie in the future of the line.
INSERT INTO time_line (one, boot_id, boottime, reads, wall_ahead)
SELECT 1, '00000000-0000-0000-0000-000000000000', 0, coalesce(max(created_at), 0), 0 FROM runs;
