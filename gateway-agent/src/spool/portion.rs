//! Keeps account of who appended which records, and about how many bytes they take.

use viworks_common::telemetry::room::Origin;
use viworks_runtime::sqlite::{Connection, Row, params};

use super::{SpoolError, read};

/// Bytes of one portion: so much of what local programs handed in is given up at a time.
const BYTES_MAX: usize = 16 * 1024;

/// A range of sequence numbers that one origin appended.
struct Portion {
    from_seq: u64,
    to_seq: u64,
    bytes: u64,
    local: bool,
}

impl Portion {
    /// About so many of its bytes belong to numbers up to `seq`.
    fn bytes_up_to(&self, seq: u64) -> u64 {
        let all = u128::from(self.to_seq - self.from_seq) + 1;
        let gone = u128::from(seq.min(self.to_seq).saturating_sub(self.from_seq)) + 1;
        // No larger than what it is a part of.
        u64::try_from(u128::from(self.bytes) * gone / all).unwrap_or(self.bytes)
    }
}

/// Notes that `origin` appended the records `from..=to`.
pub(super) fn note(
    connection: &Connection,
    epoch: i64,
    (from, to): (u64, u64),
    bytes: usize,
    origin: Origin,
) -> Result<(), SpoolError> {
    const GROW: &str = "\
        UPDATE portion SET to_seq = :to, bytes = bytes + :bytes
        WHERE epoch = :epoch AND from_seq = (SELECT max(from_seq) FROM portion WHERE epoch = :epoch)
            AND to_seq = :from - 1 AND local = :local AND bytes + :bytes <= :most";
    const INSERT: &str = "\
        INSERT INTO portion (epoch, from_seq, to_seq, bytes, local)
        VALUES (:epoch, :from, :to, :bytes, :local)";
    let local = origin == Origin::Local;
    let most = BYTES_MAX;
    if connection.execute(GROW, params! { epoch, from, to, bytes, local, most })? == 0 {
        connection.execute(INSERT, params! { epoch, from, to, bytes, local })?;
    }
    let local_bytes = if local { bytes } else { 0 };
    let sql = "UPDATE usage SET bytes = bytes + :bytes, local_bytes = local_bytes + :local_bytes";
    connection.execute(sql, params! { bytes, local_bytes })?;
    Ok(())
}

/// The oldest portion of a local program: its epoch, and the range.
pub(super) fn oldest_local(connection: &Connection) -> Result<Option<(i64, u64, u64)>, SpoolError> {
    const OLDEST: &str = "\
        SELECT epoch, from_seq, to_seq FROM portion WHERE local = 1 ORDER BY epoch, from_seq LIMIT 1";
    connection.optional(OLDEST, &[], |row| {
        Ok((
            read(row, "epoch")?,
            read(row, "from_seq")?,
            read(row, "to_seq")?,
        ))
    })
}

/// Forgets the portion that begins at `from`, whose records are gone.
pub(super) fn forget(connection: &Connection, epoch: i64, from: u64) -> Result<(), SpoolError> {
    const LOOK: &str = "\
        SELECT from_seq, to_seq, bytes, local FROM portion WHERE epoch = :epoch AND from_seq = :from";
    let found = connection.optional(LOOK, params! { epoch, from }, portion)?;
    let sql = "DELETE FROM portion WHERE epoch = :epoch AND from_seq = :from";
    connection.execute(sql, params! { epoch, from })?;
    match found {
        Some(portion) => give_back(connection, portion.bytes, portion.local),
        None => Ok(()),
    }
}

/// Forgets everything of an epoch up to `seq`, whose records are gone.
pub(super) fn forget_up_to(
    connection: &Connection,
    epoch: i64,
    seq: u64,
) -> Result<(), SpoolError> {
    const LOOK: &str = "\
        SELECT from_seq, to_seq, bytes, local FROM portion
        WHERE epoch = :epoch AND from_seq <= :seq ORDER BY from_seq";
    const DELETE: &str = "\
        DELETE FROM portion WHERE epoch = :epoch AND from_seq <= :seq AND to_seq <= :seq";
    // At most one spans the number.
    const CUT: &str = "\
        UPDATE portion SET from_seq = :seq + 1, bytes = bytes - :gone
        WHERE epoch = :epoch AND from_seq <= :seq";
    let found = connection.all(LOOK, params! { epoch, seq }, portion)?;
    connection.execute(DELETE, params! { epoch, seq })?;
    for portion in &found {
        let gone = portion.bytes_up_to(seq);
        if portion.to_seq > seq {
            connection.execute(CUT, params! { epoch, seq, gone })?;
        }
        give_back(connection, gone, portion.local)?;
    }
    Ok(())
}

fn portion(row: &Row<'_>) -> Result<Portion, SpoolError> {
    Ok(Portion {
        from_seq: read(row, "from_seq")?,
        to_seq: read(row, "to_seq")?,
        bytes: read(row, "bytes")?,
        local: read(row, "local")?,
    })
}

fn give_back(connection: &Connection, bytes: u64, local: bool) -> Result<(), SpoolError> {
    let local_bytes = if local { bytes } else { 0 };
    let sql = "UPDATE usage SET bytes = bytes - :bytes, local_bytes = local_bytes - :local_bytes";
    connection.execute(sql, params! { bytes, local_bytes })?;
    Ok(())
}
