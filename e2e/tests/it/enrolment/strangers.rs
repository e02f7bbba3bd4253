//! Strangers at the door who have no ticket: whatever they hold or send, machines that have one enrol beside them.

use std::net::IpAddr;
use std::time::Duration;

use rcgen::KeyPair;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use viworks_common::enrolment::Ticket;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, Start};
use viworks_testkit::door;
use viworks_testkit::process::eventually;

use super::refused::{plain, redeem, request};
use super::{LIMIT, good_for, ticket, with_door};

/// Connections of each address.
const EACH: usize = 20;

/// What a stranger does with a connection.
#[derive(Clone, Copy)]
enum Holds {
    /// Not one byte.
    Connection,
    /// TLS, and no request.
    Tls,
    /// The head of a request, and of its body one byte.
    Body,
}

async fn door_of(start: Start) -> Deployment {
    let mut system = Deployment::new(Binaries::shipped());
    system.start_backend(start).await;
    system
}

/// Connects, holds that for as long as it is let, and begins again.
async fn hold(address: String, authority: Vec<u8>, from: IpAddr, what: Holds) {
    let mut pace = interval(Duration::from_millis(200));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut read = [0; 64];
    loop {
        pace.tick().await;
        if matches!(what, Holds::Connection) {
            if let Ok(mut stream) = door::reach(&address, from).await {
                drop(stream.read(&mut read).await);
            }
            continue;
        }
        let Ok(mut stream) = door::connect(&address, &authority, from).await else {
            continue;
        };
        if matches!(what, Holds::Body) {
            let begun = door::head(100, None) + "{";
            drop(stream.write_all(begun.as_bytes()).await);
        }
        drop(stream.read(&mut read).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_holds_places_without_a_ticket_keeps_nobody_from_enrolling() {
    let start = with_door()
        .with("VIWORKS__ENROLMENT__CONNECTIONS_MAX", "64")
        .with("VIWORKS__ENROLMENT__PER_SOURCE_MAX", "16");
    let system = door_of(start).await;
    let ticket = ticket(&system, &json!({"uses": 3})).await;
    for (name, what) in [
        ("gw-connections", Holds::Connection),
        ("gw-tls", Holds::Tls),
        ("gw-bodies", Holds::Body),
    ] {
        let mut strangers = JoinSet::new();
        for host in 2..=5 {
            let from = IpAddr::from([127, 0, 0, host]);
            for _ in 0..EACH {
                let (address, authority) = (system.door_address().to_owned(), system.authority());
                strangers.spawn(hold(address, authority, from, what));
            }
        }
        good_for(&system, name, &ticket).await;
        strangers.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_address_has_as_many_places_as_its_bound_says() {
    const OUSTED: &str = "viworks_enrolments_total{outcome=\"ousted\"} ";
    let start = with_door()
        .with("VIWORKS__ENROLMENT__CONNECTIONS_MAX", "64")
        .with("VIWORKS__ENROLMENT__PER_SOURCE_MAX", "3");
    let system = door_of(start).await;
    let ousted = async || {
        let (_status, text) = system.request("GET", "/metrics", None).await.ok()?;
        let line = |line: &str| line.strip_prefix(OUSTED)?.parse::<usize>().ok();
        text.as_str()?.lines().find_map(line)
    };
    let mut held = Vec::new();
    for (host, connections) in [(2, 3), (3, 5)] {
        let from = IpAddr::from([127, 0, 0, host]);
        for _ in 0..connections {
            held.push(door::reach(system.door_address(), from).await.unwrap());
        }
    }
    // Two of the second address: the first has its places, and there is room for many more.
    let two = async || (ousted().await == Some(2)).then_some(());
    eventually("two make room", LIMIT, two).await;
    drop(held);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_right_takes_nothing_of_those_behind_the_same_address() {
    let limited = with_door().with("VIWORKS__ENROLMENT__REQUESTS_PER_MINUTE", "2");
    let system = door_of(limited).await;
    let one: Ticket = ticket(&system, &json!({"uses": 9})).await.parse().unwrap();
    let other = ticket(&system, &json!({"uses": 1})).await;
    let authority = system.authority();
    let mut codes = Vec::new();
    for _ in 0..4 {
        let asked = door::ask(system.door_address(), &authority, b"", b"{}", None).await;
        codes.push(asked.unwrap().0);
    }
    assert_eq!(codes, [400, 400, 429, 429]);
    // From the same address; and a ticket has its own bound.
    let mut answers = Vec::new();
    for name in ["gw-1", "gw-2", "gw-3"] {
        let csr = request(&plain(), &KeyPair::generate().unwrap());
        answers.push(redeem(&system, &one, &csr, Some(name)).await);
    }
    let codes: Vec<u16> = answers.iter().map(|(status, _said)| *status).collect();
    assert_eq!(codes, [200, 200, 429], "{answers:?}");
    assert_eq!(answers[2].1["code"], "rate_limited", "{answers:?}");
    good_for(&system, "gw-4", &other).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stop_waits_for_nobody_without_a_ticket() {
    let mut system = door_of(with_door()).await;
    let (address, authority) = (system.door_address().to_owned(), system.authority());
    let from = IpAddr::from([127, 0, 0, 2]);
    let _tcp = door::reach(&address, from).await.unwrap();
    let _tls = door::connect(&address, &authority, from).await.unwrap();
    let mut body = door::connect(&address, &authority, from).await.unwrap();
    let begun = door::head(100, None) + "{";
    body.write_all(begun.as_bytes()).await.unwrap();
    let begun = Instant::now();
    let status = system.backend().stop(LIMIT).await;
    // Each of them could hold it for three seconds.
    let took = begun.elapsed();
    assert!(
        status.success() && took < Duration::from_secs(2),
        "{status} {took:?}"
    );
}
