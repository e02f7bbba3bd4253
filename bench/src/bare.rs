//! The reference's agent: one message to be known, then it answers whatever comes.

use anyhow::{Context, bail};
use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;

use crate::dial::Socket;

/// Says who it is, says so through `up` when that is answered, and serves until the connection ends.
pub(crate) async fn serve(name: &str, mut socket: Socket, up: impl FnOnce()) -> anyhow::Result<()> {
    socket.send(Message::text(name)).await?;
    let answer = socket.next().await.context("the connection ended")??;
    if !answer.is_text() {
        bail!("not an answer: {answer:?}");
    }
    up();
    while let Some(message) = socket.next().await {
        match message? {
            command @ Message::Binary(_) => socket.send(command).await?,
            Message::Close(_) => break,
            Message::Ping(_) | Message::Pong(_) | Message::Text(_) | Message::Frame(_) => {}
        }
    }
    bail!("the connection ended")
}
