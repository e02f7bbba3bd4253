//! A year of fifty gateways, in about a minute: their clocks, and the backend's, are set forward from season to season.
//! Each season every machine is started anew, as machines are, and every gateway that is on renews its certificate.
//! Meanwhile the server's key and the authority of the certificates are replaced twice each, while five machines are
//! off for longer than a certificate lives.
//!
//! What is not in it: certificates of one hour all year long, which is ten thousand renewals of each gateway. That year
//! is simulated by `testkit/tests/it/year.rs`; that a session lives on while its gateway renews, and while
//! the server's files are replaced, by `renewed.rs`, `pins.rs` and `authority.rs`. The server's own certificates follow
//! each authority a season later, when everybody who is on has had a session since; the five that are off learn the one
//! that is left at the door.

use std::path::{Path, PathBuf};

use futures_util::future::join_all;
use rcgen::KeyPair;
use serde_json::json;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::dump::change;
use viworks_testkit::process::{Process, eventually};

use crate::authority::Authority;
use crate::pins::{confirmed_by, live, pin, pin_of};
use crate::renewals::renew_server;
use viworks_testkit::faketime::library;

const GATEWAYS: usize = 50;

/// So many of them are off in the two seasons behind the first.
const AWAY: usize = 5;

/// Of the certificates that are issued over sessions, in days. The first ones live for 90.
const LIFE: &str = "100";

/// On which day each season begins: every certificate that is in use is past two thirds of its life then, and good; one
/// that was missed is not any more.
const SEASONS: [u32; 5] = [0, 85, 179, 273, 367];

struct Machine {
    name: String,
    folder: PathBuf,
    /// What was issued to it before this season.
    had: Vec<Vec<u8>>,
    process: Option<Process>,
}

impl Machine {
    /// What was issued to it, over its sessions or at the door.
    fn issued(&self) -> Vec<Vec<u8>> {
        let files = ["renewal.pem", "renewed.pem"];
        let paths = files.map(|name| self.folder.join("state").join(name));
        paths
            .iter()
            .filter_map(|path| std::fs::read(path).ok())
            .collect()
    }

    async fn has_renewed(&self) {
        let what = format!("{} has another certificate", self.name);
        // Gone once the certificate is kept: nobody pulls the plug in between.
        let asked = self.folder.join("state/renewal.key");
        eventually(&what, PATIENCE, async || {
            let issued = self.issued();
            let is_new = issued.iter().any(|one| !self.had.contains(one));
            (is_new && !asked.exists()).then_some(())
        })
        .await;
    }
}

struct Year {
    system: Deployment,
    library: PathBuf,
    machines: Vec<Machine>,
}

impl Year {
    fn new(library: PathBuf) -> Self {
        let system = Deployment::new(Binaries::shipped());
        let machines = (1..=GATEWAYS).map(|number| {
            let name = format!("gw-{number:02}");
            Machine {
                folder: system.issue(&name),
                name,
                had: Vec::new(),
                process: None,
            }
        });
        let machines = machines.collect();
        Self {
            system,
            library,
            machines,
        }
    }

    fn backend(&self) -> PathBuf {
        self.system.path().join("backend")
    }

    /// A wall clock that is so many days ahead; the monotonic ones are the machine's.
    fn on_day(&self, day: u32) -> Start {
        Start::default()
            .with("LD_PRELOAD", self.library.display().to_string())
            .with("FAKETIME", format!("+{day}d"))
            .with("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    }

    /// Power is cut everywhere, and the season passes.
    async fn passes(&mut self) {
        for machine in &mut self.machines {
            drop(machine.process.take());
        }
        assert!(self.system.backend().stop(PATIENCE).await.success());
        // Its machine was started anew: how long it was off is for the wall clock to say.
        change(
            &self.system.state_folder().join("backend.sqlite"),
            "UPDATE time_line SET boot_id = '00000000-0000-4000-8000-000000000001'",
        );
    }

    /// The backend, and these gateways, are started on a day; all of them come, and answer.
    async fn begins(&mut self, day: u32, from: usize) {
        let start = self
            .on_day(day)
            .with("VIWORKS__ENROLMENT__LISTEN", "127.0.0.1:0")
            .with("VIWORKS__ENROLMENT__CERTIFICATE_DAYS", LIFE);
        self.system.start_backend(start).await;
        let door = format!("https://{}", self.system.door_address());
        let start = self
            .on_day(day)
            .with("VIWORKS__OUTBOUND__DOOR_URL", door)
            .with("VIWORKS__OUTBOUND__BACKOFF_MAX_MS", "1000")
            .with("VIWORKS__OUTBOUND__UNPROVED_BACKOFF_BASE_MS", "500")
            .with("VIWORKS__OUTBOUND__PERMANENT_BACKOFF_MIN_MS", "500")
            .with("VIWORKS__OUTBOUND__PERMANENT_BACKOFF_MAX_MS", "2000")
            .with("VIWORKS__LOG__FILTER", "warn");
        let system = &self.system;
        let on = &mut self.machines[from..];
        for machine in on.iter_mut() {
            machine.had = machine.issued();
            machine.process = Some(system.start_gateway(&machine.folder, start.clone()));
        }
        join_all(on.iter().map(|machine| system.online(&machine.name))).await;
        self.answers(from).await;
    }

    /// Every gateway that is on answers a command.
    async fn answers(&self, from: usize) {
        let on = &self.machines[from..];
        let names: Vec<&str> = on.iter().map(|machine| machine.name.as_str()).collect();
        let body = json!({ "command": "gateway.info", "targets": { "gateways": names } });
        let run = self.system.post("/v1/runs", &body).await;
        let run = self.system.finished(run["id"].as_str().unwrap()).await;
        assert_eq!(run["counts"]["succeeded"], names.len(), "{run}");
    }

    /// Every gateway that is on is issued another certificate.
    async fn renews(&self, from: usize) {
        let on = self.machines[from..].iter();
        join_all(on.map(Machine::has_renewed)).await;
    }
}

/// Puts another certificate and its key where the server has them. The files keep their modes.
fn put(backend: &Path, certificate: &str, key: &KeyPair) {
    std::fs::write(backend.join("server.crt"), certificate).unwrap();
    std::fs::write(backend.join("server.key"), key.serialize_pem()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_year_of_renewals_and_rotations_nobody_is_cut_off() {
    let Some(library) = library() else {
        return;
    };
    let mut year = Year::new(library);
    let backend = year.backend();
    let key_in = |name: &str| {
        let pem = std::fs::read_to_string(backend.join(name)).unwrap();
        KeyPair::from_pem(&pem).unwrap()
    };
    let keys = [
        key_in("server.key"),
        key_in("next.key"),
        KeyPair::generate().unwrap(),
    ];
    let certified = |key: &KeyPair| {
        let certificate = renew_server(&backend, key, time::Duration::days(500));
        put(&backend, &certificate, key);
    };
    certified(&keys[0]);
    let pins = keys.each_ref().map(pin_of);
    let first = Authority::of(&backend);
    let second = Authority::create("the second authority");
    let third = Authority::create("the third authority");
    let [start, spring, summer, autumn, winter] = SEASONS;

    // Every gateway is told of the key after next before anybody goes away.
    year.begins(start, 0).await;
    assert_eq!(live(&year.system).await, pins[0]);
    let staged = pin(&year.system, &["stage", &pins[2]]).await;
    drop(staged.ended_with(0));
    let everybody = u64::try_from(GATEWAYS).unwrap();
    confirmed_by(&year.system, &pins[2], everybody).await;
    let promoted = pin(&year.system, &["promote", &pins[1]]).await;
    drop(promoted.ended_with(0));

    // Five are off. The server shows its second key, and a second authority signs.
    year.passes().await;
    certified(&keys[1]);
    second.signs_beside(&backend, &[&first]);
    year.begins(spring, AWAY).await;
    year.renews(AWAY).await;
    assert_eq!(live(&year.system).await, pins[1]);
    let retired = pin(&year.system, &["retire", &pins[0]]).await;
    drop(retired.ended_with(0));
    let promoted = pin(&year.system, &["promote", &pins[2]]).await;
    drop(promoted.ended_with(0));

    // They are still off. Both happen again, the server has a certificate of the second authority, and the first is
    // gone.
    year.passes().await;
    certified(&keys[2]);
    third.signs_beside(&backend, &[&second]);
    year.begins(summer, AWAY).await;
    year.renews(AWAY).await;
    assert_eq!(live(&year.system).await, pins[2]);

    // The five are switched on: what they have has ended, is of an authority that nobody knows any more, and they have
    // never seen the server's key, nor heard of the authority of its certificate. Nobody touches them.
    year.passes().await;
    third.signs_beside(&backend, &[]);
    certified(&keys[2]);
    year.begins(autumn, 0).await;
    year.renews(0).await;
    let metrics = year.system.request("GET", "/metrics", None).await;
    let (_status, metrics) = metrics.unwrap();
    let by_the_door =
        format!("viworks_certificate_renewals_total{{outcome=\"door_issued\"}} {AWAY}\n");
    let metrics = metrics.as_str().unwrap();
    assert!(metrics.contains(&by_the_door), "{metrics}");

    year.passes().await;
    year.begins(winter, 0).await;
    year.renews(0).await;
}
