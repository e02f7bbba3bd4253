//! The gateway's connector and socket against every family of RFC 6455, by the driver that outside suites use.

use tokio::net::TcpListener;
use viworks_common::limits::SocketBounds;
use viworks_runtime::lifecycle::Lifecycle;
use viworks_testkit::websocket::Peer;
use viworks_testkit::websocket::cases::{self, Case};

#[path = "../../examples/ws_fuzz_client/drive.rs"]
mod drive;

use drive::Server;

async fn play(cases: Vec<Case>, bounds: SocketBounds) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let lifecycle = Lifecycle::new();
    let count = cases.len();
    let driver = lifecycle.spawn("driver", async move {
        let server = Server {
            host: address.ip().to_string(),
            port: address.port(),
            bounds,
        };
        for case in 0..count {
            // How it ended is for the other end to judge.
            drop(Box::pin(server.echo(&format!("/{case}"))).await);
        }
    });
    let mut failures = Vec::new();
    for (index, case) in cases.into_iter().enumerate() {
        let (stream, _) = listener.accept().await.unwrap();
        let (peer, path) = Peer::answer(stream).await.unwrap();
        assert_eq!(path, format!("/{index}"));
        if let Err(error) = case.play(peer).await {
            failures.push(format!("{error:#}"));
        }
    }
    drop(driver);
    lifecycle.abort();
    lifecycle.shutdown(std::time::Duration::ZERO).await;
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[tokio::test]
async fn messages_of_every_length_come_back() {
    play(cases::framing(), SocketBounds::SESSION).await;
}

#[tokio::test]
async fn pings_are_answered_in_order() {
    play(cases::pings(), SocketBounds::SESSION).await;
}

#[tokio::test]
async fn what_is_reserved_fails_the_connection() {
    play(cases::reserved(), SocketBounds::SESSION).await;
}

#[tokio::test]
async fn fragments_are_put_together_and_refused_out_of_place() {
    play(cases::fragments(), SocketBounds::SESSION).await;
}

#[tokio::test]
async fn text_that_is_not_utf8_fails_at_its_first_fragment() {
    play(cases::utf8(), SocketBounds::SESSION).await;
}

#[tokio::test]
async fn close_frames_are_answered_with_their_number() {
    play(cases::closes(), SocketBounds::SESSION).await;
}

#[tokio::test]
async fn masked_frames_fail_the_connection() {
    play(cases::masking(), SocketBounds::SESSION).await;
}

#[tokio::test]
async fn the_bounds_of_a_session_hold() {
    let bounds = SocketBounds::SESSION;
    play(cases::bounds(bounds.message, bounds.frame), bounds).await;
}

#[tokio::test]
async fn messages_of_sixteen_mebibytes_come_back_under_wider_bounds() {
    play(cases::large(), SocketBounds::of_messages(64 << 20)).await;
}

/// A small server of the suite: two cases, and a report at the end.
#[tokio::test]
async fn the_case_loop_asks_for_the_count_then_each_case_then_the_report() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let lifecycle = Lifecycle::new();
    let driver = lifecycle.spawn("driver", async move {
        let server = Server {
            host: address.ip().to_string(),
            port: address.port(),
            bounds: SocketBounds::SESSION,
        };
        let mut seen = Vec::new();
        let run = server.run_cases(|case, count| seen.push((case, count)));
        Box::pin(run).await.map(|()| seen)
    });
    let mut paths = Vec::new();
    for said in [Some("2"), None, None, None] {
        let (stream, _) = listener.accept().await.unwrap();
        let (mut peer, path) = Peer::answer(stream).await.unwrap();
        if let Some(said) = said {
            peer.send(0x81, said.as_bytes()).await;
        } else {
            peer.send(0x88, &1000_u16.to_be_bytes()).await;
            peer.expect(0x88, &1000_u16.to_be_bytes()).await.unwrap();
        }
        paths.push(path);
    }
    let seen = driver.await.unwrap().unwrap();
    assert_eq!(seen, [(1, 2), (2, 2)]);
    assert_eq!(
        paths,
        [
            "/getCaseCount",
            "/runCase?case=1&agent=viworks",
            "/runCase?case=2&agent=viworks",
            "/updateReports?agent=viworks",
        ]
    );
}
