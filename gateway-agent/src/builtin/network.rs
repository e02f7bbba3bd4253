//! `net.interfaces` and `net.resolve`.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{IpAddr, ToSocketAddrs};

use sysinfo::Networks;

use super::table::{self, Align};
use super::{BuiltinError, failed};
use crate::host;
use crate::host::interfaces::{self, Ranks};

pub(super) fn interfaces(output: &mut dyn Write) -> Result<(), BuiltinError> {
    let counters = interfaces::counters()
        .map_err(|error| BuiltinError::Failed(format!("the interfaces cannot be read: {error}")))?;
    let networks = Networks::new_with_refreshed_list().map_err(failed("interfaces"))?;
    let known_to_sys = interfaces::are_in_sys(&counters);
    let ranks = Ranks::read();
    let mut ordered: Vec<_> = counters
        .iter()
        .map(|(name, counted)| (ranks.of(name), name, counted))
        .collect();
    ordered.sort_by_key(|(rank, name, _counted)| (*rank, *name));
    let rows: Vec<Vec<String>> = ordered
        .into_iter()
        .map(|(_rank, name, counted)| {
            let data = networks
                .iter()
                .find_map(|(known, data)| (known == name).then_some(data));
            let told = |told: Option<String>| told.unwrap_or_else(|| "unknown".to_owned());
            let in_sys = data.filter(|_| known_to_sys);
            let mut addresses: Vec<String> = data
                .into_iter()
                .flat_map(|data| data.ip_networks())
                .map(ToString::to_string)
                .collect();
            addresses.sort();
            vec![
                host::printable(name),
                told(in_sys.map(|data| data.operational_state().to_string())),
                told(data.map(|data| data.mac_address().to_string())),
                told(in_sys.map(|data| data.mtu().to_string())),
                table::bytes(counted.received_bytes),
                table::bytes(counted.sent_bytes),
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
