//! Makes what a demo needs and starts its processes, the backend first.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;

use tokio::time::Instant;
use viworks_common::human;

use super::enrol;
use super::layout::{Addresses, FIRST, Layout};
use super::processes::{Programs, Running, run_to_end, stop};
use super::stores::Stores;
use crate::client::Client;
use crate::failure::Failure;
use crate::{output, views};

/// Where the gateways are said to be.
const PLACES: [&str; 6] = ["berlin", "lyon", "oslo", "porto", "turin", "ghent"];
/// The name of the second backend.
const SECOND: &str = "backend-2";
/// What the operator's key may do.
const SCOPES: &str = "all";

/// The names of so many gateways.
pub(super) fn gateway_names(number: usize) -> Vec<String> {
    (0..number).map(gateway_name).collect()
}

fn gateway_name(index: usize) -> String {
    PLACES.get(index).map_or_else(
        || format!("gw-site-{:02}", index + 1),
        |place| format!("gw-{place}"),
    )
}

/// The backend's certificates and configuration, if they are missing.
pub(super) async fn certificates(programs: &Programs, layout: &Layout) -> Result<(), Failure> {
    let step = Instant::now();
    let config = layout.backend_config();
    if !config.exists() {
        let dir = layout.backend();
        // What an interrupted start left: without its configuration nothing was ever made with it.
        layout.remove_backend()?;
        run_to_end(
            layout,
            &programs.backend,
            &["pki", "init", "--dir", path(&dir)?],
        )
        .await?;
    }
    views::demo::step(
        "certificates",
        &views::demo::from_here(&layout.backend()),
        "ECDSA P-256",
        step.elapsed(),
    );
    Ok(())
}

/// The operator's key, if it is missing, in the database.
pub(super) async fn operator(
    programs: &Programs,
    layout: &Layout,
    stores: Stores,
) -> Result<(), Failure> {
    let step = Instant::now();
    if !layout.token().exists() {
        key(programs, layout).await?;
    }
    views::demo::step("operator", "1 API key", stores.place(), step.elapsed());
    Ok(())
}

/// Another key of the operator, in the place of one that may not do everything.
pub(super) async fn operator_anew(programs: &Programs, layout: &Layout) -> Result<(), Failure> {
    std::fs::remove_file(layout.token())?;
    key(programs, layout).await
}

async fn key(programs: &Programs, layout: &Layout) -> Result<(), Failure> {
    let (config, token) = (layout.backend_config(), layout.token());
    let arguments = [
        "apikey",
        "create",
        "--config",
        path(&config)?,
        "--name",
        "demo",
        "--scopes",
        SCOPES,
        "--out",
        path(&token)?,
    ];
    run_to_end(layout, &programs.backend, &arguments).await
}

/// Identities of the gateways, whatever is missing of them.
pub(super) async fn identities(
    programs: &Programs,
    layout: &Layout,
    client: &Client,
    door: Option<&str>,
    names: &[String],
) -> Result<(), Failure> {
    let step = Instant::now();
    let site = |index| PLACES.get(index).copied().unwrap_or("elsewhere");
    let gateways: Vec<(String, &str)> = names
        .iter()
        .enumerate()
        .map(|(index, name)| (name.clone(), site(index)))
        .collect();
    let made = enrol::missing(programs, layout, client, door, &gateways).await?;
    let how = match (made, names.len() - made) {
        (0, _) => "of before".to_owned(),
        (_, 0) => "enrolled by ticket".to_owned(),
        (made, _) => format!("{made} enrolled by ticket"),
    };
    views::demo::step(
        "identities",
        &human::counted(names.len(), "gateway", "gateways"),
        &how,
        step.elapsed(),
    );
    Ok(())
}

/// Starts the backends, two where they share a database server; the first one on its usual ports where they are free.
pub(super) async fn backends(
    programs: &Programs,
    layout: &Layout,
    stores: Stores,
    running: &mut Vec<Running>,
) -> Result<Vec<Addresses>, Failure> {
    let mut all = vec![backend(programs, layout, running).await?];
    if stores.is_shared() {
        let step = Instant::now();
        let state = layout.make_state(SECOND)?;
        let second = Backend {
            name: SECOND,
            state: Some(&state),
            api: 0,
            agents: 0,
        };
        let addresses = launch_backend(programs, layout, running, &second).await?;
        views::demo::step(
            "second backend",
            &format!("wss://{}", addresses.agents),
            &format!("API http://{}", addresses.api),
            step.elapsed(),
        );
        all.push(addresses);
    }
    Ok(all)
}

/// Starts the backend, on its usual ports where they are free.
async fn backend(
    programs: &Programs,
    layout: &Layout,
    running: &mut Vec<Running>,
) -> Result<Addresses, Failure> {
    let step = Instant::now();
    let (api, agents) = (free_or_any(8080), free_or_any(8081));
    let before = running.len();
    let addresses = match launch_backend(programs, layout, running, &first(api, agents)).await {
        Ok(addresses) => addresses,
        // Somebody else may have taken a port after the look; free ones cannot be lost like that.
        Err(_failure) if (api, agents) != (0, 0) => {
            stop(&mut running.split_off(before)).await;
            output::note(&format!(
                "  the backend did not come up on ports {api} and {agents}; trying free ones"
            ));
            launch_backend(programs, layout, running, &first(0, 0)).await?
        }
        Err(failure) => return Err(failure),
    };
    views::demo::step(
        "backend",
        &format!("wss://{}", addresses.agents),
        &format!("API http://{}", addresses.api),
        step.elapsed(),
    );
    Ok(addresses)
}

/// One of a demo's backends.
struct Backend<'b> {
    name: &'b str,
    /// Its state folder, where that is not the one that the configuration names.
    state: Option<&'b Path>,
    api: u16,
    agents: u16,
}

const fn first(api: u16, agents: u16) -> Backend<'static> {
    Backend {
        name: FIRST,
        state: None,
        api,
        agents,
    }
}

async fn launch_backend(
    programs: &Programs,
    layout: &Layout,
    running: &mut Vec<Running>,
    backend: &Backend<'_>,
) -> Result<Addresses, Failure> {
    let Backend {
        name,
        state,
        api,
        agents,
    } = *backend;
    let ready = layout.ready(name);
    remove_stale(&ready)?;
    let mut environment = vec![
        ("VIWORKS__API__LISTEN", format!("127.0.0.1:{api}")),
        ("VIWORKS__AGENTS__LISTEN", format!("127.0.0.1:{agents}")),
        // Each ticket says where.
        ("VIWORKS__ENROLMENT__LISTEN", "127.0.0.1:0".to_owned()),
    ];
    if let Some(state) = state {
        environment.push(("VIWORKS__DATA__STATE_FOLDER", path(state)?.to_owned()));
    }
    let config = layout.backend_config();
    let arguments = [
        "serve",
        "--config",
        path(&config)?,
        "--ready-file",
        path(&ready)?,
    ];
    running.push(Running::start(
        layout,
        name,
        &programs.backend,
        &arguments,
        &environment,
    )?);
    let backend = running.last_mut().expect("it was pushed on the line above");
    backend.ready(&ready).await
}

/// Starts the gateways; that they are there is another question.
pub(super) fn gateways(
    programs: &Programs,
    layout: &Layout,
    names: &[String],
    backends: &[Addresses],
    running: &mut Vec<Running>,
) -> Result<(), Failure> {
    // In turn, as a balancer in front of several backends has them.
    for (name, addresses) in names.iter().zip(backends.iter().cycle()) {
        let config = layout.gateway(name).join("gateway.toml");
        let mut environment = vec![(
            "VIWORKS__OUTBOUND__URL",
            format!("wss://{}/agent/v1/connect", addresses.agents),
        )];
        if let Some(socket) = layout.short_socket(name)? {
            environment.push(("VIWORKS__GATEWAY__SOCKET", path(&socket)?.to_owned()));
        }
        running.push(Running::start(
            layout,
            name,
            &programs.gateway,
            &["run", "--config", path(&config)?],
            &environment,
        )?);
    }
    Ok(())
}

pub(super) fn path(path: &Path) -> Result<&str, Failure> {
    path.to_str().ok_or_else(|| {
        Failure::usage(format!(
            "{} is not UTF-8; use another folder",
            path.display()
        ))
    })
}

fn remove_stale(file: &Path) -> Result<(), Failure> {
    match std::fs::remove_file(file) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The wanted port when it is free, otherwise 0: the backend then takes any free one.
fn free_or_any(port: u16) -> u16 {
    match TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))) {
        Ok(_free) => port,
        Err(_taken) => {
            output::note(&format!("  port {port} is taken; using a free one"));
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::gateway_names;

    #[test]
    fn gateway_names_are_distinct_and_valid() {
        let names: std::collections::BTreeSet<String> = gateway_names(40).into_iter().collect();
        assert_eq!(names.len(), 40);
        for name in names {
            name.parse::<viworks_common::id::GatewayName>().unwrap();
        }
    }
}
