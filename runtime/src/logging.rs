//! What the process says to whoever reads its log.

use std::io::{self, Write};
use std::str::FromStr;

use tracing::Subscriber;
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::Registry;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

mod escape;

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
}

/// Checks a filter such as `info,viworks_gateway_agent::outbound=debug`.
///
/// # Errors
///
/// When it has no meaning.
pub fn check_filter(filter: &str) -> Result<(), LoggingError> {
    parse_filter(filter).map(drop)
}

/// Sends the events of this process that pass `filter` to the standard error output, from now on.
///
/// # Errors
///
/// When the filter has no meaning, or logging was set up before.
pub fn init(format: Format, filter: &str) -> Result<(), LoggingError> {
    subscriber(format, filter, io::stderr)?
        .try_init()
        .map_err(LoggingError::Twice)
}

/// What [`init`] installs, for any writer.
///
/// # Errors
///
/// When the filter has no meaning.
pub fn subscriber<W>(
    format: Format,
    filter: &str,
    writer: W,
) -> Result<impl Subscriber + Send + Sync, LoggingError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let registry = Registry::default().with(parse_filter(filter)?);
    let layer = fmt::layer();
    let layer = match format {
        Format::Human => layer
            .with_ansi(false)
            .with_writer(Escaping { inner: writer })
            .boxed(),
        Format::Json => layer
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .with_writer(writer)
            .boxed(),
    };
    Ok(registry.with(layer))
}

fn parse_filter(filter: &str) -> Result<EnvFilter, LoggingError> {
    EnvFilter::try_new(filter).map_err(|source| LoggingError::Filter {
        filter: filter.to_owned(),
        source,
    })
}

/// Makes writers that write one event as one harmless line.
struct Escaping<W> {
    inner: W,
}

impl<'w, W: MakeWriter<'w>> MakeWriter<'w> for Escaping<W> {
    type Writer = EscapingWriter<W::Writer>;

    fn make_writer(&'w self) -> Self::Writer {
        EscapingWriter {
            inner: self.inner.make_writer(),
        }
    }
}

/// Writes what it is given, which is one event with its line break, in one piece.
struct EscapingWriter<W> {
    inner: W,
}

impl<W: Write> Write for EscapingWriter<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.inner
            .write_all(escape::line(&String::from_utf8_lossy(event)).as_bytes())?;
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
            subscriber(format, filter, move || writer.clone()).unwrap(),
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
        let text = logged(Format::Json, "info", || {
            let _span = info_span!("session", agent_id = "a1").entered();
            info!(attempt = 3, "line\nbreak");
        });
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(text.lines().count(), 1);
        assert_eq!(json["message"], "line\nbreak");
        assert_eq!(json["attempt"], 3);
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
    fn formats_have_names() {
        assert_eq!("json".parse(), Ok(Format::Json));
        assert_eq!("human".parse(), Ok(Format::Human));
        assert!("xml".parse::<Format>().is_err());
    }
}
