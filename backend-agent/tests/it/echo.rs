//! The backend's acceptor and socket against every family of RFC 6455, by the echo that outside suites use.

use tokio::net::{TcpListener, TcpStream};
use viworks_common::limits::SocketBounds;
use viworks_runtime::lifecycle::Lifecycle;
use viworks_testkit::websocket::Peer;
use viworks_testkit::websocket::cases::{self, Case};

#[path = "../../examples/ws_echo/echo.rs"]
#[expect(
    clippy::module_inception,
    reason = "the file of the example has its name"
)]
mod echo;

async fn play(cases: Vec<Case>, bounds: SocketBounds) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let lifecycle = Lifecycle::new();
    let connections = lifecycle.clone();
    drop(lifecycle.spawn("listener", async move {
        while let Ok((stream, _)) = listener.accept().await {
            drop(connections.spawn("echo", Box::pin(echo::serve(stream, bounds))));
        }
    }));
    let mut failures = Vec::new();
    for case in cases {
        let stream = TcpStream::connect(address).await.unwrap();
        let peer = Peer::request(stream).await.unwrap();
        if let Err(error) = case.play(peer).await {
            failures.push(format!("{error:#}"));
        }
    }
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
async fn frames_without_a_mask_fail_the_connection() {
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

#[tokio::test]
async fn a_request_with_two_hosts_is_refused() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asking = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
                       sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let serving = async {
        let (stream, _address) = listener.accept().await.unwrap();
        echo::serve(stream, SocketBounds::SESSION).await;
    };
    let (answer, ()) = tokio::join!(asking, serving);
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}
