//! What the process says to whoever reads its log.
//!
//! Whoever logs never waits for whoever reads: see [`queue`].

use std::backtrace::{Backtrace, BacktraceStatus};
use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::panic::PanicHookInfo;
use std::str::FromStr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use rustix::event::{PollFd, PollFlags, poll};
use tokio::sync::watch;
use tracing::Subscriber;
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::Registry;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, reload};
use viworks_common::text;

use crate::clock::{Clock, SystemClock, sleep_until};
use crate::conditions::{Conditions, Severity};
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;

mod queue;
mod settings;

pub use queue::Flow;
pub use settings::LogConfig;

use queue::Queue;

/// Bytes of lines that may wait when the configuration does not say.
pub const WAITING_BYTES_DEFAULT: usize = 1024 * 1024;

/// How long the end of the process waits for its last lines.
const FLUSH_TIME: Duration = Duration::from_secs(1);

/// How long the log must flow again before nothing is wrong with it.
const CALM_TIME: Duration = Duration::from_secs(5);

/// The name of the condition that lines are dropped.
const CONDITION: &str = "log";

/// The lines of this process, once [`init`] was called.
static LINES: OnceLock<Queue> = OnceLock::new();

/// The filter in force, once [`init`] was called.
static FILTER: OnceLock<Filter> = OnceLock::new();

struct Filter {
    handle: reload::Handle<EnvFilter, Registry>,
    /// As it was given.
    said: Mutex<String>,
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For eyes: one line per event, control characters escaped.
    #[default]
    Human,
    /// For machines: one JSON object per line.
    Json,
}

/// A word that names no [`Format`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown log format {0:?}; known are: human, json")]
pub struct UnknownFormat(String);

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "human" => Ok(Self::Human),
            "json" => Ok(Self::Json),
            other => Err(UnknownFormat(other.to_owned())),
        }
    }
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter has no meaning.
    #[error("failed to understand the log filter {filter:?}")]
    Filter {
        /// As it was given.
        filter: String,
        /// What is wrong with it.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// It was set up before.
    #[error("failed to set up logging")]
    Twice(#[source] tracing_subscriber::util::TryInitError),
    /// The filter in force could not be exchanged.
    #[error("failed to exchange the log filter")]
    Exchange(#[source] reload::Error),
    /// The standard error output cannot be used.
    #[error("failed to open the log")]
    Output(#[source] io::Error),
    /// There is no thread that writes.
    #[error("failed to start the thread that writes the log")]
    Thread(#[source] io::Error),
}

/// Checks a filter such as `info,viworks_gateway_agent::outbound=debug`.
///
/// # Errors
///
/// When it has no meaning.
pub fn check_filter(filter: &str) -> Result<(), LoggingError> {
    parse_filter(filter).map(drop)
}

/// Sends the events of this process that pass `filter` to the standard error output, from now on; a panic is one of
/// them. Nobody who logs waits for that output: `waiting_bytes_max` bytes of lines may wait. Call [`flush`] at the end.
///
/// # Errors
///
/// When the filter has no meaning, or logging was set up before.
pub fn init(format: Format, filter: &str, waiting_bytes_max: usize) -> Result<(), LoggingError> {
    let lines = LINES.get_or_init(|| Queue::new(waiting_bytes_max));
    let (layer, handle) = reload::Layer::new(parse_filter(filter)?);
    layered(format, layer, move || Pusher(lines))
        .try_init()
        .map_err(LoggingError::Twice)?;
    let said = Mutex::new(filter.to_owned());
    let _first = FILTER.set(Filter { handle, said });
    // Not the handle of the standard library: its lock would make everybody wait who says a last word there.
    let output = io::stderr()
        .as_fd()
        .try_clone_to_owned()
        .map_err(LoggingError::Output)?;
    std::thread::Builder::new()
        .name("log".to_owned())
        .spawn(move || {
            let output = Patient(File::from(output));
            lines.drain(output, |missing| missing_lines(format, missing));
        })
        .map_err(LoggingError::Thread)?;
    std::panic::set_hook(Box::new(panicked));
    Ok(())
}

/// Takes over another filter while the process runs; nothing happens before [`init`], or where it is the one in force.
///
/// # Errors
///
/// When it has no meaning, or cannot be exchanged.
pub fn take_over(filter: &str) -> Result<(), LoggingError> {
    let Some(current) = FILTER.get() else {
        return Ok(());
    };
    let mut said = current.said.lock().unwrap_or_else(PoisonError::into_inner);
    if *said == filter {
        return Ok(());
    }
    let parsed = parse_filter(filter)?;
    current
        .handle
        .reload(parsed)
        .map_err(LoggingError::Exchange)?;
    filter.clone_into(&mut said);
    drop(said);
    tracing::info!(filter, "took over the log filter");
    Ok(())
}

/// Waits a moment for the last lines to be written. What nobody takes is given up: a process that was told to end,
/// ends.
pub fn flush() {
    if let Some(lines) = LINES.get() {
        // What could not be written has no other place to go.
        let _written: bool = lines.flush(FLUSH_TIME);
    }
}

/// Says something to people: in the log when there is one, otherwise to the standard error output. Whoever had a word
/// in it, it drives no terminal.
pub fn say(said: &str) {
    let text = harmless(said);
    match LINES.get() {
        Some(lines) => lines.push(text.as_bytes()),
        // Nobody is left to tell that nobody could be told.
        None => drop(io::stderr().write_all(text.as_bytes())),
    }
}

fn harmless(said: &str) -> String {
    format!("{}\n", text::block(said))
}

/// Whether the log flows; none before [`init`].
#[must_use]
pub fn flow() -> Option<watch::Receiver<Flow>> {
    LINES.get().map(Queue::flow)
}

/// Says in `conditions`, until the process stops, whether lines of the log are being dropped.
pub async fn watch(conditions: Conditions, clock: Arc<dyn Clock>, lifecycle: Lifecycle) {
    if let Some(flow) = flow() {
        tokio::select! {
            biased;
            () = lifecycle.stopping() => {}
            () = tell(flow, conditions, clock) => {}
        }
    }
}

async fn tell(mut flow: watch::Receiver<Flow>, conditions: Conditions, clock: Arc<dyn Clock>) {
    while becomes(&mut flow, true).await {
        conditions.raise(
            CONDITION,
            Severity::Warn,
            "nobody takes the lines of the log: those that find no room are dropped and counted",
            "see that whatever reads the standard error output of this process works and has room",
        );
        // Until it has flowed for a while: a reader that is merely slow is one condition, not hundreds.
        loop {
            if !becomes(&mut flow, false).await {
                return;
            }
            let calm = clock.now().saturating_add(CALM_TIME);
            tokio::select! {
                () = sleep_until(&*clock, calm) => break,
                _stuck = becomes(&mut flow, true) => {}
            }
        }
        conditions.clear(CONDITION);
    }
}

/// Waits until the log is stuck or not; false when nobody can tell any more.
async fn becomes(flow: &mut watch::Receiver<Flow>, stuck: bool) -> bool {
    flow.wait_for(|flow| flow.stuck == stuck).await.is_ok()
}

/// Shows in `metrics` how many lines were dropped.
pub fn register(metrics: &Metrics) {
    metrics.register(|registry| registry.register_collector(Box::new(Dropped)));
}

#[derive(Debug)]
struct Dropped;

impl Collector for Dropped {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let lines = flow().map_or(0, |flow| flow.borrow().dropped);
        let dropped = ConstCounter::new(lines);
        dropped.encode(encoder.encode_descriptor(
            "viworks_log_lines_dropped",
            "Lines of the log that were dropped because nobody took them",
            None,
            dropped.metric_type(),
        )?)
    }
}

/// The line that stands where others are missing. It does not depend on the filter.
fn missing_lines(format: Format, lines: u64) -> String {
    let at = SystemClock.wall();
    let message = "lines dropped: nobody took the log";
    let mut text = match format {
        Format::Human => format!("{at}  WARN viworks_runtime::logging: {lines} {message}"),
        Format::Json => serde_json::json!({
            "timestamp": at,
            "level": "WARN",
            "message": format!("{lines} {message}"),
            "lines": lines,
            "target": "viworks_runtime::logging",
        })
        .to_string(),
    };
    text.push('\n');
    text
}

/// A panic is an event like others. The hook of the standard library would write it itself, and wait.
fn panicked(info: &PanicHookInfo<'_>) {
    let message = info.payload_as_str().unwrap_or("no message");
    let place = info.location().map(ToString::to_string);
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("without a name");
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        tracing::error!(thread, place, %backtrace, "panicked: {message}");
    } else {
        tracing::error!(thread, place, "panicked: {message}");
    }
}

/// Writes each event into the queue, in one piece.
struct Pusher(&'static Queue);

impl Write for Pusher {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.0.push(event);
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An output whose other holder may have made it one that does not block.
struct Patient(File);

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(&self.0, PollFlags::OUT)], None)?;
                }
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// What [`init`] installs, for any writer.
fn layered<F, W>(format: Format, filter: F, writer: W) -> impl Subscriber + Send + Sync
where
    F: Layer<Registry> + Send + Sync,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let registry = Registry::default().with(filter);
    let layer = fmt::layer();
    let layer = match format {
        Format::Human => layer
            .with_ansi(false)
            .with_writer(Escaping {
                inner: writer,
                escape: one_line,
            })
            .boxed(),
        Format::Json => layer
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .with_writer(Escaping {
                inner: writer,
                escape: text::json,
            })
            .boxed(),
    };
    registry.with(layer)
}

fn parse_filter(filter: &str) -> Result<EnvFilter, LoggingError> {
    EnvFilter::try_new(filter).map_err(|source| LoggingError::Filter {
        filter: filter.to_owned(),
        source,
    })
}

/// How an event is made harmless.
type Escape = fn(&str) -> Cow<'_, str>;

/// An event for eyes: only the line break at its end stays.
fn one_line(event: &str) -> Cow<'_, str> {
    match event.strip_suffix('\n') {
        Some(body) => match text::line(body) {
            Cow::Borrowed(_) => Cow::Borrowed(event),
            Cow::Owned(escaped) => Cow::Owned(escaped + "\n"),
        },
        None => text::line(event),
    }
}

/// Makes writers that write one event as one harmless line.
struct Escaping<W> {
    inner: W,
    escape: Escape,
}

impl<'w, W: MakeWriter<'w>> MakeWriter<'w> for Escaping<W> {
    type Writer = EscapingWriter<W::Writer>;

    fn make_writer(&'w self) -> Self::Writer {
        EscapingWriter {
            inner: self.inner.make_writer(),
            escape: self.escape,
        }
    }
}

/// Writes what it is given, which is one event with its line break, in one piece.
struct EscapingWriter<W> {
    inner: W,
    escape: Escape,
}

impl<W: Write> Write for EscapingWriter<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.inner
            .write_all((self.escape)(&String::from_utf8_lossy(event)).as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex, PoisonError};

    use tracing::subscriber::with_default;
    use tracing::{debug, info, info_span};

    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Memory {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: Format, filter: &str, act: impl FnOnce()) -> String {
        let memory = Memory::default();
        let writer = memory.clone();
        with_default(
            layered(format, parse_filter(filter).unwrap(), move || {
                writer.clone()
            }),
            act,
        );
        memory.text()
    }

    #[test]
    fn a_human_line_cannot_be_forged_by_what_a_peer_sent() {
        let text = logged(Format::Human, "info", || {
            info!(
                name = "a\n2026-01-01 ERROR forged\u{1b}[31m",
                "peer\rsays \u{202e}hello"
            );
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(
            text.ends_with('\n') && !text.trim_end_matches('\n').contains(char::is_control),
            "{text}"
        );
        assert!(
            !text.contains('\u{202e}') && text.contains("forged"),
            "{text}"
        );
    }

    #[test]
    fn a_json_line_holds_the_fields_and_the_span() {
        let event = logged(Format::Json, "info", || {
            let _span = info_span!("session", agent_id = "a1").entered();
            info!(attempt = 3, turned = "\u{202e}\u{9b}31m", "line\nbreak");
        });
        assert!(!event.trim_end().contains(text::is_unsafe), "{event:?}");
        let json: serde_json::Value = serde_json::from_str(&event).unwrap();
        assert_eq!(event.lines().count(), 1);
        assert_eq!(json["message"], "line\nbreak");
        assert_eq!(json["attempt"], 3);
        assert_eq!(json["turned"], "\u{202e}\u{9b}31m");
        assert_eq!(json["span"]["agent_id"], "a1");
        assert_eq!(json["level"], "INFO");
    }

    #[test]
    fn the_filter_decides() {
        let text = logged(Format::Human, "warn,viworks_runtime=debug", || {
            debug!("shown");
        });
        assert!(text.contains("shown"));
        assert_eq!(logged(Format::Human, "warn", || info!("hidden")), "");
    }

    #[test]
    fn a_filter_without_meaning_is_refused() {
        assert!(matches!(
            check_filter("info,=,="),
            Err(LoggingError::Filter { .. })
        ));
        check_filter("info,tower=warn").unwrap();
    }

    #[test]
    fn what_is_said_to_people_drives_no_terminal() {
        let said = harmless("a\n  fix: \u{1b}[31mb\u{202e}");
        assert_eq!(said, "a\n  fix: \\u{1b}[31mb\\u{202e}\n");
    }

    #[test]
    fn formats_have_names() {
        assert_eq!("json".parse(), Ok(Format::Json));
        assert_eq!("human".parse(), Ok(Format::Human));
        assert!("xml".parse::<Format>().is_err());
    }
}
