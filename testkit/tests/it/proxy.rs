//! The fault proxy does what it is told, to the connections that live and to new ones.

use std::io::ErrorKind;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use viworks_testkit::proxy::{Network, Proxy};

/// What comes back within this time has passed; a machine that is busy may need some of it.
const PATIENCE: Duration = Duration::from_secs(20);

/// What has not come back within this time does not pass.
const SILENCE: Duration = Duration::from_millis(400);

/// A server that says again what it hears.
struct Echo {
    address: String,
    _tasks: JoinSet<()>,
}

impl Echo {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(async move {
                    let (mut from, mut to) = stream.into_split();
                    // It ends with its client, in whatever way that does.
                    let _gone = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        Self {
            address,
            _tasks: tasks,
        }
    }
}

async fn bed() -> (Echo, Proxy, TcpStream) {
    let echo = Echo::start().await;
    let proxy = Proxy::before(echo.address.as_str()).await.unwrap();
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(asked(&mut stream, b"first").await, b"first");
    (echo, proxy, stream)
}

/// Says something and hears it again.
async fn asked(stream: &mut TcpStream, said: &[u8]) -> Vec<u8> {
    stream.write_all(said).await.unwrap();
    heard(stream, said.len()).await
}

async fn heard(stream: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut heard = vec![0; count];
    timeout(PATIENCE, stream.read_exact(&mut heard))
        .await
        .expect("an answer comes")
        .unwrap();
    heard
}

/// How a connection ends: the bytes of the last answer, none when it was closed.
async fn end(stream: &mut TcpStream) -> std::io::Result<usize> {
    timeout(PATIENCE, stream.read(&mut [0; 8]))
        .await
        .expect("it ends")
}

async fn says_nothing(stream: &mut TcpStream) -> bool {
    timeout(SILENCE, stream.read(&mut [0; 8])).await.is_err()
}

#[tokio::test]
async fn many_connections_pass_at_once_and_end_with_their_ends() {
    let (_echo, proxy, first) = bed().await;
    let mut clients = JoinSet::new();
    for number in 0..200_u8 {
        let address = proxy.address();
        clients.spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let said = vec![number; 100_000];
            let (mut from, mut to) = stream.split();
            let mut heard = Vec::new();
            let (written, read) = tokio::join!(
                async {
                    to.write_all(&said).await?;
                    to.shutdown().await
                },
                timeout(PATIENCE, from.read_to_end(&mut heard)),
            );
            written.unwrap();
            read.expect("the answer ends").unwrap();
            assert!(heard == said, "{number}: {} bytes", heard.len());
        });
    }
    clients.join_all().await;
    assert!(proxy.carried() >= 1);
    drop(first);
}

#[tokio::test]
async fn where_new_connections_go_can_change() {
    let (_echo, proxy, _first) = bed().await;
    let other = Echo::start().await;
    proxy.forward_to("127.0.0.1:1");
    let mut nowhere = TcpStream::connect(proxy.address()).await.unwrap();
    assert!(!matches!(end(&mut nowhere).await, Ok(1..)));
    proxy.forward_to(&other.address);
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(asked(&mut stream, b"there").await, b"there");
}

#[tokio::test]
async fn a_delay_holds_up_each_piece_in_each_direction() {
    let (_echo, proxy, mut stream) = bed().await;
    let delay = Duration::from_millis(150);
    proxy.set(Network::Delay(delay));
    let begun = Instant::now();
    assert_eq!(asked(&mut stream, b"late").await, b"late");
    assert!(begun.elapsed() >= 2 * delay, "{:?}", begun.elapsed());
    // What waits already need not wait for longer than the delay lasts.
    proxy.set(Network::Delay(10 * PATIENCE));
    stream.write_all(b"soon").await.unwrap();
    assert!(says_nothing(&mut stream).await);
    proxy.set(Network::Normal);
    assert_eq!(heard(&mut stream, 4).await, b"soon");
}

#[tokio::test]
async fn a_slow_network_carries_so_many_bytes_a_second() {
    let (_echo, proxy, mut stream) = bed().await;
    proxy.set(Network::Slow(100_000));
    let begun = Instant::now();
    let said = vec![7; 50_000];
    assert_eq!(asked(&mut stream, &said).await, said);
    assert!(
        begun.elapsed() >= Duration::from_millis(450),
        "{:?}",
        begun.elapsed()
    );
    proxy.set(Network::Normal);
    let said = vec![7; 5_000_000];
    let (mut from, mut to) = stream.split();
    let mut heard = vec![0; said.len()];
    let both = async { tokio::join!(to.write_all(&said), from.read_exact(&mut heard)) };
    let (written, read) = timeout(PATIENCE, both)
        .await
        .expect("it is quick again: slow, it would take 50 s");
    written.unwrap();
    read.unwrap();
}

#[tokio::test]
async fn half_open_passes_nothing_closes_nothing_and_loses_nothing() {
    let (_echo, proxy, mut stream) = bed().await;
    let mut leaver = TcpStream::connect(proxy.address()).await.unwrap();
    asked(&mut leaver, b"here").await;
    proxy.set(Network::HalfOpen);
    stream.write_all(b"kept").await.unwrap();
    leaver.shutdown().await.unwrap();
    let mut new = TcpStream::connect(proxy.address()).await.unwrap();
    new.write_all(b"new").await.unwrap();
    for stream in [&mut stream, &mut leaver, &mut new] {
        assert!(says_nothing(stream).await);
    }
    proxy.set(Network::Normal);
    assert_eq!(heard(&mut stream, 4).await, b"kept");
    assert_eq!(heard(&mut new, 3).await, b"new");
    assert_eq!(end(&mut leaver).await.unwrap(), 0);
}

#[tokio::test]
async fn a_cut_closes_what_lives_and_what_comes_until_it_is_over() {
    let (_echo, proxy, mut stream) = bed().await;
    proxy.set(Network::Cut);
    assert_eq!(end(&mut stream).await.unwrap(), 0);
    let mut new = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(end(&mut new).await.unwrap(), 0);
    proxy.set(Network::Normal);
    let mut new = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(asked(&mut new, b"again").await, b"again");
    // However short it is.
    proxy.set(Network::Cut);
    proxy.set(Network::Normal);
    assert_eq!(end(&mut new).await.unwrap(), 0);
}

#[tokio::test]
async fn a_reset_is_a_reset_at_both_ends() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let proxy = Proxy::before(address).await.unwrap();
    let mut near = TcpStream::connect(proxy.address()).await.unwrap();
    let (mut far, _) = timeout(PATIENCE, listener.accept())
        .await
        .expect("it comes")
        .unwrap();
    near.write_all(b"there").await.unwrap();
    assert_eq!(heard(&mut far, 5).await, b"there");
    // A half-open line can break, too.
    proxy.set(Network::HalfOpen);
    proxy.set(Network::Reset);
    for end_of_it in [&mut near, &mut far] {
        let error = end(end_of_it).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    let mut new = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(
        end(&mut new).await.unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
}

#[tokio::test]
async fn one_in_so_many_is_cut_and_the_others_live_on() {
    let (_echo, proxy, first) = bed().await;
    let port = |stream: &TcpStream| stream.local_addr().unwrap().port();
    let which = port(&first) % 4;
    let mut streams = vec![first];
    while streams.iter().all(|stream| port(stream) % 4 == which) {
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        asked(&mut stream, b"in").await;
        streams.push(stream);
    }
    proxy.cut(4, which);
    for stream in &mut streams {
        if port(stream) % 4 == which {
            assert_eq!(end(stream).await.unwrap(), 0);
        } else {
            assert_eq!(asked(stream, b"alive").await, b"alive");
        }
    }
}
