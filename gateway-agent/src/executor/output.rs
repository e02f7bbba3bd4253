//! Drains one output stream: keeps its beginning and its end, counts what lies between, and passes pieces on live.

use std::collections::VecDeque;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use viworks_common::command::RetainedOutput;
use viworks_common::id::CommandId;
use viworks_common::output::{begun_letter, cut_head, cut_tail};
use viworks_common::wire::message::OutputStream;

use super::{LIVE_BYTES_MAX, LiveOutput};

/// Reads one stream to its end.
pub(super) struct Collector<R> {
    command_id: CommandId,
    stream: OutputStream,
    pipe: Option<R>,
    kept: Kept,
    /// The beginning of a letter whose end has not been read yet: it goes live with that, not before.
    begun: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Collector<R> {
    pub(super) fn new(
        command_id: CommandId,
        stream: OutputStream,
        pipe: Option<R>,
        limit: usize,
    ) -> Self {
        Self {
            command_id,
            stream,
            pipe,
            kept: Kept::new(limit),
            begun: Vec::new(),
        }
    }

    /// Reads until everybody has closed the other end. Can be dropped and called again.
    pub(super) async fn drain(&mut self, live: Option<&mpsc::Sender<LiveOutput>>) {
        // What is held back of a letter goes before what is read next.
        let mut buffer = vec![0; LIVE_BYTES_MAX - 3];
        while let Some(pipe) = &mut self.pipe {
            let read = match pipe.read(&mut buffer).await {
                Ok(0) | Err(_) => {
                    self.pipe = None;
                    let rest = std::mem::take(&mut self.begun);
                    self.pass_on(live, rest);
                    return;
                }
                Ok(read) => read,
            };
            let Some(data) = buffer.get(..read) else {
                return;
            };
            self.kept.push(data);
            let mut piece = std::mem::take(&mut self.begun);
            piece.extend_from_slice(data);
            self.begun = piece.split_off(piece.len() - begun_letter(&piece));
            self.pass_on(live, piece);
        }
    }

    /// Sends a piece live that ends before what is held back.
    fn pass_on(&self, live: Option<&mpsc::Sender<LiveOutput>>, data: Vec<u8>) {
        let Some(live) = live.filter(|_live| !data.is_empty()) else {
            return;
        };
        let behind = length(data.len() + self.begun.len());
        // A reader that is too slow misses pieces; it sees that by their offsets.
        drop(live.try_send(LiveOutput {
            command_id: self.command_id,
            stream: self.stream,
            offset: self.kept.total.saturating_sub(behind),
            data,
        }));
    }
}

/// Divides `limit` between the streams: each may have half, and what one does not need goes to the other.
pub(super) fn share<A, B>(
    limit: usize,
    stdout: Collector<A>,
    stderr: Collector<B>,
) -> (RetainedOutput, RetainedOutput) {
    let (stdout, stderr) = (stdout.kept, stderr.kept);
    let half = limit / 2;
    let (first, second) = (stdout.len(), stderr.len());
    let (for_stdout, for_stderr) = if first + second <= limit {
        (first, second)
    } else if second <= half {
        (limit - second, second)
    } else if first <= half {
        (first, limit - first)
    } else {
        (limit - half, half)
    };
    (stdout.finish(for_stdout), stderr.finish(for_stderr))
}

/// The beginning and the end of a stream, in constant memory.
struct Kept {
    head_max: usize,
    tail_max: usize,
    head: Vec<u8>,
    tail: VecDeque<u8>,
    total: u64,
}

impl Kept {
    const fn new(limit: usize) -> Self {
        let tail_max = limit / 2;
        Self {
            head_max: limit - tail_max,
            tail_max,
            head: Vec::new(),
            tail: VecDeque::new(),
            total: 0,
        }
    }

    fn len(&self) -> usize {
        self.head.len() + self.tail.len()
    }

    fn push(&mut self, data: &[u8]) {
        self.total = self.total.saturating_add(length(data.len()));
        let room = self.head_max - self.head.len();
        let (head, rest) = data.split_at(room.min(data.len()));
        self.head.extend_from_slice(head);
        let rest = &rest[rest.len().saturating_sub(self.tail_max)..];
        let excess = (self.tail.len() + rest.len()).saturating_sub(self.tail_max);
        self.tail.drain(..excess);
        self.tail.extend(rest);
    }

    fn finish(self, budget: usize) -> RetainedOutput {
        let mut head = self.head;
        let mut tail: Vec<u8> = self.tail.into();
        if self.total == length(head.len() + tail.len()) && head.len() + tail.len() <= budget {
            head.append(&mut tail);
            return RetainedOutput {
                head,
                tail,
                cut_bytes: 0,
            };
        }
        // Nothing may have been cut while reading and the other stream still need the room.
        let tail_max = budget / 2;
        let head_max = budget - tail_max;
        if head.len() < head_max {
            let moved = (head_max - head.len()).min(tail.len());
            if self.total == length(head.len() + tail.len()) {
                head.extend(tail.drain(..moved));
            }
        }
        head.truncate(head_max);
        tail.drain(..tail.len().saturating_sub(tail_max));
        // Never inside a letter, and not inside a line where one ends close by.
        head.truncate(cut_head(&head));
        tail.drain(..cut_tail(&tail));
        let cut_bytes = self.total - length(head.len() + tail.len());
        RetainedOutput {
            head,
            tail,
            cut_bytes,
        }
    }
}

fn length(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn collector(limit: usize, chunks: &[Vec<u8>]) -> Collector<tokio::io::Empty> {
        let id = CommandId::from_uuid(uuid::Uuid::from_u128(1));
        let mut collector = Collector::new(id, OutputStream::Stdout, None, limit);
        for chunk in chunks {
            collector.kept.push(chunk);
        }
        collector
    }

    fn check(kept: &RetainedOutput, whole: &[u8]) {
        assert!(whole.starts_with(&kept.head));
        assert!(whole.ends_with(&kept.tail));
        let seen = length(kept.head.len() + kept.tail.len());
        assert_eq!(seen + kept.cut_bytes, length(whole.len()));
        assert!(kept.cut_bytes > 0 || kept.tail.is_empty());
    }

    #[test]
    fn what_is_kept_of_text_is_whole_lines() {
        let lines: Vec<Vec<u8>> = (0..1_000)
            .map(|number| format!("línea {number}\n").into_bytes())
            .collect();
        let whole = lines.concat();
        let kept = collector(1_000, &lines).kept.finish(1_000);
        check(&kept, &whole);
        assert!(kept.head.ends_with(b"\n"));
        assert!(kept.tail.starts_with("línea ".as_bytes()));
        assert!(kept.head.len() > 480 && kept.tail.len() > 480);
    }

    #[test]
    fn one_long_line_is_cut_between_letters() {
        for limit in 100..104 {
            let kept = collector(limit, &["€".repeat(1_000).into_bytes()])
                .kept
                .finish(limit);
            assert!(std::str::from_utf8(&kept.head).is_ok(), "{limit}");
            assert!(std::str::from_utf8(&kept.tail).is_ok(), "{limit}");
        }
    }

    #[tokio::test]
    async fn a_letter_is_in_one_live_piece_wherever_the_pipe_divides_it() {
        use tokio::io::AsyncWriteExt;

        let (mut writer, reader) = tokio::io::duplex(1);
        let (sender, mut pieces) = mpsc::channel(64);
        let id = CommandId::from_uuid(uuid::Uuid::from_u128(1));
        let mut collector = Collector::new(id, OutputStream::Stdout, Some(reader), 100);
        let write = async {
            writer.write_all("aé€😀\u{ff}".as_bytes()).await.unwrap();
            writer.write_all(b"\xe2\x82").await.unwrap();
            drop(writer);
        };
        tokio::join!(write, collector.drain(Some(&sender)));
        drop(sender);
        let mut at = 0;
        let mut texts = Vec::new();
        while let Some(piece) = pieces.recv().await {
            assert_eq!(piece.offset, at);
            at += length(piece.data.len());
            texts.push(String::from_utf8_lossy(&piece.data).into_owned());
        }
        assert_eq!(texts, ["a", "é", "€", "😀", "ÿ", "\u{fffd}"]);
        assert_eq!(at, 14);
    }

    proptest! {
        #[test]
        fn head_tail_and_cut_always_add_up_and_stay_within_the_limit(
            limit in 1_usize..200,
            out in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..8),
            err in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..8),
        ) {
            let (stdout, stderr) = share(limit, collector(limit, &out), collector(limit, &err));
            let (out, err) = (out.concat(), err.concat());
            check(&stdout, &out);
            check(&stderr, &err);
            let kept = stdout.head.len() + stdout.tail.len() + stderr.head.len() + stderr.tail.len();
            prop_assert!(kept <= limit);
            if out.len() + err.len() <= limit {
                prop_assert_eq!(stdout.cut_bytes + stderr.cut_bytes, 0);
            }
        }
    }
}
