//! Records of telemetry in the file, where they are rows like any other.

use viworks_common::id::{AgentId, Tenant};
use viworks_common::time::Timestamp;
use viworks_runtime::sqlite::{Connection, params};

use crate::data::intents::link::{LinkError, Record};

pub(super) const INSERT: &str = "\
INSERT INTO telemetry (tenant, agent_id, spool_epoch, seq, stream, observed_at, stored_at, fields, time_source, gateway_time)
VALUES (:tenant, :agent_id, :spool_epoch, :seq, :stream, :observed_at, :stored_at, :fields, :time_source, :gateway_time)
ON CONFLICT DO NOTHING";

pub(super) const DELETE: &str = "\
DELETE FROM telemetry WHERE (tenant, agent_id, spool_epoch, seq) IN (
    SELECT tenant, agent_id, spool_epoch, seq FROM telemetry
    WHERE tenant = :tenant AND agent_id = :agent_id AND observed_at < :before ORDER BY observed_at LIMIT :most)";

pub(super) fn append(
    connection: &Connection,
    tenant: &Tenant,
    records: &[Record<'_>],
) -> Result<(), LinkError> {
    let tenant = tenant.as_str();
    for record in records {
        let Record {
            agent_id,
            spool_epoch,
            seq,
            stream,
            observed_at,
            stored_at,
            fields,
            time_source,
            gateway_time,
        } = record;
        let params = params! {
            tenant, agent_id, spool_epoch, seq, stream, observed_at, stored_at, fields, time_source, gateway_time,
        };
        connection.execute(INSERT, params)?;
    }
    Ok(())
}

pub(super) fn delete(
    connection: &Connection,
    tenant: &Tenant,
    agent_id: AgentId,
    before: Timestamp,
    most: usize,
) -> Result<usize, LinkError> {
    let tenant = tenant.as_str();
    let params = params! { tenant, agent_id, before, most };
    Ok(connection.execute(DELETE, params)?)
}
