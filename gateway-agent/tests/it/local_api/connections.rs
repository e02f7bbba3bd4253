//! Connections and the socket: how many, how long, how large, and who keeps whom out.

use tokio::time::timeout;
use viworks_gateway_agent::api::ApiError;
use viworks_testkit::process::eventually;

use super::*;

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

const GET_HEALTH: &str = "GET /v1/health HTTP/1.1\r\nhost: local\r\n\r\n";

#[tokio::test]
async fn bodies_are_bounded_altogether_and_a_crowd_is_told_of() {
    let server = Server::start_within(ServeLimits {
        bodies_bytes_max: 2_048,
        connections_max: 1,
        ..ServeLimits::default()
    })
    .await;
    let mut byte = [0; 1];
    let head = "POST /v1/telemetry HTTP/1.1\r\nhost: local\r\ncontent-type: application/json\r\ncontent-length: 2048\r\n\r\n";
    let mut caller = server
        .connect(&format!("{head}{}", " ".repeat(2_048)))
        .await;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        caller.read_exact(&mut byte).await.unwrap();
        answer.extend(byte);
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    has_headers(&answer);
    assert!(
        !server
            .conditions
            .list()
            .iter()
            .any(|found| found.name == "socket.crowded")
    );
    // The only place there is goes to the newcomer.
    let (status, _body) = server.request("GET", "/v1/status", None).await;
    assert_eq!(status, 200);
    let found = server.conditions.list();
    let found = found
        .iter()
        .find(|found| found.name == "socket.crowded")
        .unwrap();
    assert!(found.cause.contains("1 connection was cut"), "{found:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_connection_over_the_limit_takes_the_place_of_an_idle_one() {
    let server = Server::start_within(ServeLimits {
        connections_max: 1,
        ..ServeLimits::default()
    })
    .await;
    let mut byte = [0; 1];
    let mut first = server.connect(GET_HEALTH).await;
    first.read_exact(&mut byte).await.unwrap();
    let mut second = server.connect(GET_HEALTH).await;
    timeout(PATIENCE, second.read_exact(&mut byte))
        .await
        .unwrap()
        .unwrap();
    let mut rest = Vec::new();
    timeout(PATIENCE, first.read_to_end(&mut rest))
        .await
        .expect("the idle one is closed")
        .unwrap();
    drop(second);
    server.stop().await;
}

#[tokio::test]
async fn callers_who_read_nothing_keep_nobody_out_and_are_cut() {
    let server = Server::start_within(ServeLimits {
        connections_max: 8,
        per_user_max: 4,
        send_timeout: Duration::from_millis(200),
        ..ServeLimits::default()
    })
    .await;
    let request = "GET /v1/status HTTP/1.1\r\nhost: gateway\r\n\r\n".repeat(2_000);
    let mut silent = Vec::new();
    for _ in 0..12 {
        let mut stream = server.connect("").await;
        // More than the socket takes; it may be cut while it is sent.
        let sent = timeout(
            Duration::from_millis(50),
            stream.write_all(request.as_bytes()),
        )
        .await;
        drop(sent);
        silent.push(stream);
        let mut other = server.connect(GET_HEALTH).await;
        let mut byte = [0; 1];
        timeout(PATIENCE, other.read_exact(&mut byte))
            .await
            .unwrap()
            .unwrap();
    }
    for mut stream in silent {
        let mut rest = Vec::new();
        let ended = timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        drop(ended.expect("a caller who reads nothing is cut"));
    }
    server.stop().await;
}

#[tokio::test]
async fn a_caller_for_whom_there_is_no_place_gets_the_headers_of_every_other_answer() {
    let server = Server::start_within(ServeLimits {
        connections_max: 1,
        ..ServeLimits::default()
    })
    .await;
    let mut busy = server
        .connect("POST /v1/telemetry HTTP/1.1\r\nhost: local\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n")
        .await;
    let mut byte = [0; 1];
    // Whoever is told to go on has a request that is being worked on, and stays.
    let told = timeout(PATIENCE, busy.read_exact(&mut byte)).await;
    told.unwrap().unwrap();
    let mut late = server.connect("").await;
    let mut answer = String::new();
    let ended = timeout(PATIENCE, late.read_to_string(&mut answer)).await;
    ended.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    has_headers(&answer);
    drop(busy);
    server.stop().await;
}

#[tokio::test]
async fn two_hosts_and_encoded_bodies_are_refused() {
    let server = Server::start_within(ServeLimits::default()).await;
    for (headers, status) in [
        ("host: a\r\nhost: b\r\n", "400"),
        ("host: a\r\ncontent-encoding: gzip\r\n", "415"),
        ("host: a\r\ncontent-encoding: identity\r\n", "200"),
    ] {
        let request = format!("GET /v1/catalogue HTTP/1.1\r\n{headers}connection: close\r\n\r\n");
        let mut stream = server.connect(&request).await;
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer))
            .await
            .unwrap()
            .unwrap();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer}"
        );
    }
    server.stop().await;
}

#[tokio::test]
async fn a_head_that_does_not_arrive_ends_its_connection() {
    let server = Server::start_within(ServeLimits {
        header_timeout: Duration::from_millis(50),
        ..ServeLimits::default()
    })
    .await;
    for sent in ["", "GET /v1/health HTTP/1.1\r\nhost:"] {
        let mut stream = server.connect(sent).await;
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer))
            .await
            .unwrap()
            .unwrap();
        assert!(!answer.starts_with("HTTP/1.1 2"), "{answer}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_head_that_comes_byte_by_byte_gets_no_more_time() {
    let limit = Duration::from_millis(300);
    let server = Server::start_within(ServeLimits {
        header_timeout: limit,
        ..ServeLimits::default()
    })
    .await;
    let begun = SystemClock.now();
    let mut slow = server.connect("GET /v1/health HTTP/1.1\r\nx: ").await;
    let mut pace = tokio::time::interval(limit / 20);
    let ended = timeout(PATIENCE, async {
        while slow.write_all(b"x").await.is_ok() {
            pace.tick().await;
        }
    });
    ended.await.expect("it is cut");
    let took = SystemClock.now().saturating_since(begun);
    assert!(took >= limit && took < 10 * limit, "{took:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let server = Server::start_within(ServeLimits::default()).await;
    let head = format!(
        "GET /v1/health HTTP/1.1\r\nx: {}\r\n\r\n",
        "x".repeat(17_000)
    );
    let mut stream = server.connect(&head).await;
    let mut answer = Vec::new();
    // It may be cut before it has read all of that.
    let _end = timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .unwrap();
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    server.stop().await;
}

#[tokio::test]
async fn a_body_that_does_not_arrive_is_a_problem_that_says_so() {
    let server = Server::start_within(ServeLimits {
        body_timeout: Duration::from_millis(50),
        ..ServeLimits::default()
    })
    .await;
    let head = "POST /v1/telemetry HTTP/1.1\r\nhost: local\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{";
    let mut stream = server.connect(head).await;
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("\"code\":\"body_timeout\""), "{answer}");
    assert_eq!(server.spool.figures().records, 0);
    server.stop().await;
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let first = api::bind(&path).await.unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    assert!(matches!(api::bind(&path).await, Err(ApiError::InUse(_))));
    drop(first);
    assert!(path.exists());
    drop(api::bind(&path).await.unwrap());
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(matches!(
        api::bind(&file).await,
        Err(ApiError::NotASocket(_))
    ));
    assert!(file.exists());
}

#[tokio::test]
async fn a_socket_whose_file_is_gone_is_bound_again_and_one_that_is_taken_is_told_of() {
    let server = Server::start_within(ServeLimits {
        socket_check: Duration::from_millis(10),
        ..ServeLimits::default()
    })
    .await;
    let path = server.folder.path().join("api.sock");
    let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(), 0o660);
    std::fs::remove_file(&path).unwrap();
    eventually("the socket is bound again", PATIENCE, async || {
        path.exists().then_some(())
    })
    .await;
    let (status, _body) = server.request("GET", "/v1/status", None).await;
    assert_eq!((status, mode()), (200, 0o660));
    // Somebody else's file is not touched.
    std::fs::remove_file(&path).unwrap();
    let taken = std::fs::File::create_new(&path);
    let raised = |severity: &str| {
        let listed = server.conditions.list();
        listed
            .iter()
            .any(|found| found.name == "socket" && format!("{:?}", found.severity) == severity)
    };
    if taken.is_ok() {
        eventually("what took its place is told of", PATIENCE, async || {
            raised("Fail").then_some(())
        })
        .await;
        assert!(path.is_file());
        std::fs::remove_file(&path).unwrap();
    }
    eventually("it is bound again and is well", PATIENCE, async || {
        (path.exists() && !raised("Fail")).then_some(())
    })
    .await;
    let (status, _body) = server.request("GET", "/v1/status", None).await;
    assert_eq!(status, 200);
}
