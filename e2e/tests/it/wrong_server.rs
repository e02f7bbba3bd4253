//! An address at which another kind of server answers than was named: no wait mends it, so a start refuses it with what
//! to change.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::Deployment;
use viworks_testkit::{postgres, redis};

use crate::verb;

/// A web server that answers whatever it understands in no way only once it heard a whole line, as many do.
fn web_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let _serving = std::thread::spawn(move || {
        for connected in listener.incoming().flatten() {
            let _heard = std::thread::spawn(move || {
                let mut connected = connected;
                let mut byte = [0];
                while connected.read(&mut byte).is_ok_and(|length| length == 1) && byte != *b"\n" {}
                // Whoever went away hears nothing.
                let _gone = connected.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
            });
        }
    });
    port
}

fn certificate() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let server = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let server = server.self_signed(&key).unwrap();
    (server.pem(), key.serialize_pem())
}

/// Each of `verbs` refuses what stands in `section`, and says these words.
async fn refused(system: &Deployment, section: &str, verbs: &[&[&str]], words: &[&str]) {
    let written = std::fs::read_to_string(system.backend_config()).unwrap();
    std::fs::write(system.backend_config(), format!("{written}\n{section}\n")).unwrap();
    for asked in verbs {
        let said = verb::backend(system, asked).await;
        assert_eq!(said.code, Some(78), "{section} {asked:?}: {said:#?}");
        for word in words {
            let has = said.stderr.contains(word);
            assert!(has, "{section} {asked:?}: {word}: {said:#?}");
        }
    }
    std::fs::write(system.backend_config(), written).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_kind_of_server_is_no_database() {
    let Some(mut own) = redis::Own::start() else {
        return;
    };
    let (chain, key) = certificate();
    let encrypting = own.encrypt(&chain, &key);
    let system = Deployment::new(Binaries::shipped());
    let _site = system.issue("gw-1");
    for (port, what) in [
        (own.place().port(), "Redis"),
        (web_server(), "a web server"),
        (encrypting, "encrypts"),
    ] {
        for mode in ["prefer", "disable"] {
            let url = format!("postgres://viworks@127.0.0.1:{port}/viworks?sslmode={mode}");
            let section = format!("[store]\nurl = \"{url}\"");
            let verbs: [&[&str]; 3] = [&["serve"], &["check-config", "--connect"], &["migrate"]];
            let words = ["is no PostgreSQL server", what, "check host and port"];
            refused(&system, &section, &verbs, &words).await;
            let mv: [&[&str]; 1] = [&["migrate-store", "--to", &url]];
            refused(&system, "", &mv, &words).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_kind_of_server_is_no_queue() {
    let (Some(mut own), Some(database)) = (redis::Own::start(), postgres::Own::start()) else {
        return;
    };
    let (chain, key) = certificate();
    let encrypting = own.encrypt(&chain, &key);
    let (plain, http) = (own.place().port(), web_server());
    let database = database.server().port();
    let system = Deployment::new(Binaries::shipped());
    for (scheme, port, words) in [
        ("redis", database, ["PostgreSQL", "[queue]"]),
        ("rediss", database, ["PostgreSQL", "[queue]"]),
        ("redis-cluster", database, ["PostgreSQL", "[queue]"]),
        ("redis", encrypting, ["rediss://", "encrypts"]),
        (
            "redis-cluster",
            encrypting,
            ["rediss-cluster://", "encrypts"],
        ),
        ("rediss", plain, ["redis://", "does not encrypt"]),
        ("redis", http, ["no Redis", "[queue]"]),
        ("rediss", http, ["a web server", "[queue]"]),
    ] {
        let section = format!("[queue]\nurl = \"{scheme}://127.0.0.1:{port}\"");
        let verbs: [&[&str]; 2] = [&["serve"], &["check-config", "--connect"]];
        refused(&system, &section, &verbs, &words).await;
    }
    let section = format!("[queue]\nurl = \"redis-sentinel://127.0.0.1:{database}/main\"");
    refused(&system, &section, &[&["serve"]], &["PostgreSQL", "[queue]"]).await;
}
