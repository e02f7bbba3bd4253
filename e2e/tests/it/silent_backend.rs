//! A backend that takes a request and does not answer it, as one does whose database stands still: a person is told
//! soon what is waited for, and in the end what is known.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::PATIENCE;
use viworks_testkit::process::finish;

const READY: &str = r#"{"status":"not_ready","reasons":["store.commits"]}"#;

/// Answers how it is where `says`, and nothing else; the connections that it keeps silent on.
fn answer(connected: TcpStream, says: bool) -> Option<TcpStream> {
    let mut lines = BufReader::new(&connected).lines();
    let asked = lines.next()?.ok()?;
    if !says || !asked.starts_with("GET /readyz ") {
        return Some(connected);
    }
    let _headers = lines.find(|line| line.as_ref().is_ok_and(String::is_empty));
    let length = READY.len();
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{READY}"
    );
    (&connected).write_all(answer.as_bytes()).ok()?;
    None
}

fn backend(says: bool) -> String {
    serve(move |connected| answer(connected, says))
}

/// Answers each connection by itself, and keeps those that are to stay open.
fn serve(answer: impl Fn(TcpStream) -> Option<TcpStream> + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let _serving = std::thread::spawn(move || {
        let taken = listener.incoming().flatten();
        let silent: Vec<_> = taken.filter_map(answer).collect();
        drop(silent);
    });
    format!("http://{address}")
}

/// Reads the head of a request, and says nothing.
fn lose(connected: &TcpStream) {
    let lines = BufReader::new(connected).lines().map_while(Result::ok);
    assert!(lines.take_while(|line| !line.is_empty()).count() > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_backend_is_told_for_what_and_gets_an_end() {
    let home = tempfile::tempdir().unwrap();
    let viworks = |says, arguments: &[&str]| {
        let mut command = Command::new(Binaries::shipped().cli());
        command
            .args(arguments)
            .args(["--server", &backend(says)])
            .env("HOME", home.path())
            .env("VIWORKS_CONFIG_DIR", home.path());
        finish(command, PATIENCE)
    };
    let ask_first = ["run", "sys.info", "--all"];
    let submit = ["run", "sys.info", "--all", "--yes", "--confirm", "2"];
    let (listed, asked, submitted, unsaid) = tokio::join!(
        viworks(true, &["gateway", "ls"]),
        viworks(true, &ask_first),
        viworks(true, &submit),
        viworks(false, &submit)
    );
    for said in [listed, asked.clone(), submitted.clone(), unsaid.clone()] {
        let said = said.ended_with(69);
        assert!(said.took >= Duration::from_secs(30), "{said:#?}");
        assert!(said.took < Duration::from_secs(40), "{said:#?}");
        for words in [
            "has not answered for 3 s",
            "up to 30 s",
            "did not answer in time",
        ] {
            assert!(said.stderr.contains(words), "{words}: {said:#?}");
        }
    }
    assert!(
        submitted.stderr.contains("is not ready (store.commits"),
        "{submitted:#?}"
    );
    let sent = asked.stderr.contains("nothing was submitted");
    assert!(sent, "{asked:#?}");
    assert!(
        submitted.stderr.contains("--idempotency-key"),
        "{submitted:#?}"
    );
    assert!(
        unsaid.stderr.contains("nor whether it is ready"),
        "{unsaid:#?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_leaves_open_what_became_of_the_request() {
    let home = tempfile::tempdir().unwrap();
    let backend = serve(|connected| {
        lose(&connected);
        None
    });
    let viworks = |arguments: &[&str]| {
        let mut command = Command::new(Binaries::shipped().cli());
        command
            .args(arguments)
            .args(["--server", &backend])
            .env("HOME", home.path())
            .env("VIWORKS_CONFIG_DIR", home.path());
        finish(command, PATIENCE)
    };
    let submit = ["run", "sys.info", "--all", "--yes", "--confirm", "2"];
    let keyed = [submit.as_slice(), &["--idempotency-key", "one"]].concat();
    let (submitted, keyed) = tokio::join!(viworks(&submit), viworks(&keyed));
    for (said, unknown) in [
        (
            submitted,
            "whether the run was accepted is not known: runs ls shows it",
        ),
        (keyed, "send it again with the same --idempotency-key"),
    ] {
        let said = said.ended_with(69);
        assert!(
            said.stderr.contains("before its answer was there"),
            "{said:#?}"
        );
        assert!(said.stderr.contains(unknown), "{said:#?}");
        assert!(!said.stderr.contains("is the backend running"), "{said:#?}");
    }
}
