//! Second holders of a gateway's identity, each beside the one that was accepted, and what the comparison says.

use viworks_api::{Fork, ForkHolder, ForkList};
use viworks_common::human;
use viworks_common::time::Timestamp;

use crate::failure::Failure;
use crate::output::{self, Format, one_line};

/// Prints all of them.
pub fn list(list: &ForkList, format: Format, now: Timestamp) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(list);
    }
    for (number, fork) in list.items.iter().enumerate() {
        if number > 0 {
            output::line("")?;
        }
        side_by_side(fork, now)?;
    }
    let holders = human::counted(list.items.len(), "second holder", "second holders");
    output::note(&format!("{holders} of this identity"));
    Ok(())
}

/// Both holders in columns, and what the comparison says.
pub fn side_by_side(fork: &Fork, now: Timestamp) -> Result<(), Failure> {
    let time = |at: Option<Timestamp>| {
        at.map_or_else(|| "–".to_owned(), |at| human::relative_and_exact(at, now))
    };
    let cells = |holder: &ForkHolder| {
        [
            holder.peer_address.clone(),
            holder.epoch.to_string(),
            holder.install_id.to_string(),
            holder.boot_id.to_string(),
            holder.agent_run_id.to_string(),
            holder.certificate_sha256.clone(),
            time(holder.since),
            time(holder.last_seen),
        ]
    };
    let refused = cells(&fork.refused);
    let accepted = fork.accepted.as_ref().map(cells).unwrap_or_default();
    let names = [
        "address",
        "epoch",
        "installation",
        "boot",
        "process",
        "certificate",
        "since",
        "last seen",
    ];
    let rows = names.into_iter().zip(refused.into_iter().zip(accepted));
    output::table(
        ["HOLDER", "REFUSED", "ACCEPTED"],
        rows.map(|(name, (refused, accepted))| {
            [name.to_owned(), one_line(&refused), one_line(&accepted)]
        }),
    )?;
    output::note(&format!(
        "it was refused {}; {}",
        human::counted_all(fork.times, "time", "times"),
        verdict(fork)
    ));
    Ok(())
}

/// What the two have in common says whether there are two machines.
fn verdict(fork: &Fork) -> &'static str {
    let Some(accepted) = &fork.accepted else {
        return "nobody holds this identity with a session";
    };
    let refused = &fork.refused;
    match (
        refused.boot_id == accepted.boot_id,
        refused.install_id == accepted.install_id,
    ) {
        (true, false) => {
            "one boot and two installations: the same machine; either its state folder was lost or replaced, or two agents run there (two containers have one boot): look for the second before anything is revoked"
        }
        (true, true) => {
            "one boot and one installation: the same machine, whose state folder was restored, or is used twice"
        }
        (false, true) => {
            "one installation and two boots: a copied disk, or an older state that was restored"
        }
        (false, false) => {
            "neither boot nor installation is the same: another machine, or a state folder that was lost with the old boot"
        }
    }
}
