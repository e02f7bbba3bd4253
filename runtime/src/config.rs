//! Fail-closed configuration: one TOML file, those in `conf.d` beside it and the environment, every problem reported at
//! once.
//!
//! An agent reads its sections key by key. Each read declares the key with its type, default, range and a line of
//! help, and gives a value to go on with even if the file has none that will do: a problem is noted instead, and
//! [`Document::finish`] refuses with all of them. What was read is worth nothing until `finish` has agreed.
//!
//! ```
//! # use std::time::Duration;
//! # use viworks_runtime::config::{Document, Environment};
//! # let text = "[outbound]\nurl = \"wss://backend.example:8081\"\n";
//! let mut document = Document::parse("gateway.toml".as_ref(), text, &Environment::default());
//! let mut outbound = document.section("outbound", "The connection to the backend.");
//! let url = outbound.required_url("url", &["wss"], "Where the backend listens for agents.");
//! let timeout = outbound.duration_ms(
//!     "connect_timeout_ms",
//!     Duration::from_secs(10),
//!     Duration::from_millis(100)..=Duration::from_secs(300),
//!     "How long one attempt may take.",
//! );
//! document.finish()?;
//! # assert_eq!((url.as_str(), timeout.as_secs()), ("wss://backend.example:8081", 10));
//! # Ok::<_, viworks_runtime::config::Problems>(())
//! ```
//!
//! A section that is a struct is declared with [`settings!`](crate::settings), where each key stands once.
//!
//! Every key can be overridden by `VIWORKS__SECTION__KEY`, except in arrays of tables.

mod credential;
mod document;
mod environment;
mod example;
mod explain;
mod key;
mod layers;
mod reading;
mod reference;
mod schema;
mod section;
mod settings;
mod suggest;
mod syntax;
mod text;
mod tree;
mod unknown;
mod url;
mod value;
mod values;

pub use crate::problem::{Place, Problem, Problems};
pub use document::Document;
pub use environment::{Environment, environment};
pub use explain::Explained;
pub use key::{Default, KeyReference, Kind, SectionReference};
pub use reading::{Changed, LOG_FILTER, Readings, Source, tell_broken, tell_read};
pub use reference::{Form, Whose};
pub use section::{Section, address_help};
pub use url::{check as check_url, host as url_host};
pub use values::Values;
