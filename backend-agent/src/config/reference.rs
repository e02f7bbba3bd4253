//! The configuration reference: `docs/configuration_backend.md`.

use viworks_runtime::config::{Document, Environment};

use super::Config;

/// It as Markdown.
#[must_use]
pub fn markdown() -> String {
    let mut document = Document::parse("backend.toml".as_ref(), "", &Environment::default());
    // What an empty file lacks is no news; the declarations are wanted.
    let _incomplete = Config::read(&mut document);
    document.markdown("the backend", "viworks-backend-agent")
}
