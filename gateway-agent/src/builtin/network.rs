//! `net.interfaces` and `net.resolve`.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{IpAddr, ToSocketAddrs};

use sysinfo::Networks;

use super::table::{self, Align};
use super::{BuiltinError, failed};
use crate::host;
use crate::host::interfaces::Ranks;

pub(super) fn interfaces(output: &mut dyn Write) -> Result<(), BuiltinError> {
    let networks = Networks::new_with_refreshed_list().map_err(failed("interfaces"))?;
    let ranks = Ranks::read();
    let mut ordered: Vec<_> = networks
        .iter()
        .map(|(name, data)| (ranks.of(name), name, data))
        .collect();
    ordered.sort_by_key(|(rank, name, _data)| (*rank, *name));
    let rows: Vec<Vec<String>> = ordered
        .into_iter()
        .map(|(_rank, name, data)| {
            let mut addresses: Vec<String> =
                data.ip_networks().iter().map(ToString::to_string).collect();
            addresses.sort();
            vec![
                host::printable(name),
                data.operational_state().to_string(),
                data.mac_address().to_string(),
                data.mtu().to_string(),
                table::bytes(data.total_received()),
                table::bytes(data.total_transmitted()),
                addresses.join(" "),
            ]
        })
        .collect();
    let columns = [
        ("INTERFACE", Align::Left),
        ("STATE", Align::Left),
        ("MAC", Align::Left),
        ("MTU", Align::Right),
        ("RECEIVED", Align::Right),
        ("SENT", Align::Right),
        ("ADDRESSES", Align::Left),
    ];
    Ok(table::write(output, &columns, &rows)?)
}

pub(super) fn resolve(output: &mut dyn Write, name: &str) -> Result<(), BuiltinError> {
    for address in addresses(name)? {
        writeln!(output, "{address}")?;
    }
    Ok(())
}

/// The addresses of a name, each once, in order; never empty.
pub(super) fn addresses(name: &str) -> Result<BTreeSet<IpAddr>, BuiltinError> {
    let found: BTreeSet<IpAddr> = (name, 0)
        .to_socket_addrs()
        .map_err(|error| BuiltinError::Failed(format!("{name} cannot be resolved: {error}")))?
        .map(|address| address.ip())
        .collect();
    if found.is_empty() {
        return Err(BuiltinError::Failed(format!("{name} has no address")));
    }
    Ok(found)
}
