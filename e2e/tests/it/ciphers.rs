//! What TLS nginx speaks with the files that ship: Mozilla's "intermediate", and nothing weaker.

use std::process::Command;

use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE};
use viworks_testkit::nginx::{API_NAME, Backends, Nginx};
use viworks_testkit::process::finish;

/// Suites of the recommendation, for certificates as the tests have them.
const TAKEN: [(&str, &str); 4] = [
    ("-tls1_2", "ECDHE-ECDSA-AES128-GCM-SHA256"),
    ("-tls1_2", "ECDHE-ECDSA-AES256-GCM-SHA384"),
    ("-tls1_2", "ECDHE-ECDSA-CHACHA20-POLY1305"),
    ("-tls1_3", "TLS_AES_128_GCM_SHA256"),
];

/// What clients of old offer, and what nginx tells them.
const REFUSED: [(&str, &str, &str); 4] = [
    ("-tls1_2", "ECDHE-ECDSA-AES128-SHA256", "handshake failure"),
    ("-tls1_2", "ECDHE-ECDSA-AES256-SHA", "handshake failure"),
    ("-tls1_1", "ALL", "alert protocol version"),
    ("-tls1", "ALL", "alert protocol version"),
];

/// A server of nginx takes what it should, and refuses the rest.
#[expect(clippy::print_stderr, reason = "a skipped check must be seen")]
pub(crate) async fn are_intermediate(address: &str, name: &str) {
    if Command::new("openssl").arg("version").output().is_err() {
        eprintln!(
            "SKIPPED: handshakes with nginx: openssl is not installed (apt-get install openssl)"
        );
        return;
    }
    let ask = async |version: &str, suite: &str| {
        let mut command = Command::new("openssl");
        command.args([
            "s_client",
            "-connect",
            address,
            "-servername",
            name,
            version,
        ]);
        if version == "-tls1_3" {
            command.args(["-ciphersuites", suite]);
        } else {
            // Otherwise it would not even ask for what is old.
            command.args(["-cipher", &format!("{suite}:@SECLEVEL=0")]);
        }
        finish(command, PATIENCE).await
    };
    for (version, suite) in TAKEN {
        let said = ask(version, suite).await;
        let taken = format!("Cipher is {suite}");
        assert!(
            said.code == Some(0) && said.stdout.contains(&taken),
            "{version} {suite}: {said:#?}"
        );
    }
    for (version, suite, alert) in REFUSED {
        let said = ask(version, suite).await;
        assert!(
            said.code == Some(1) && said.stderr.contains(alert),
            "{version} {suite}: {said:#?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_takes_what_mozilla_recommends_and_refuses_cbc_and_old_protocols() {
    if !Nginx::is_installed() {
        return;
    }
    // Nobody has to answer behind it.
    let backends = Backends {
        agents: vec!["127.0.0.1:1".to_owned()],
        api: vec!["127.0.0.1:1".to_owned()],
        enrolment: Vec::new(),
    };
    let system = Deployment::new(Binaries::shipped());
    for nginx in [
        Nginx::start(backends.clone()),
        Nginx::start_terminating(backends, &system.path().join("backend"), str::to_owned),
    ] {
        are_intermediate(&format!("127.0.0.1:{}", nginx.port()), API_NAME).await;
    }
}
