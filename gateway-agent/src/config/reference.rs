//! The configuration reference: `docs/configuration_gateway.md`.

use viworks_runtime::config::{Document, Environment};

use super::Config;

/// It as Markdown.
#[must_use]
pub fn markdown() -> String {
    let mut document = Document::parse("gateway.toml".as_ref(), "", &Environment::default());
    // What an empty file lacks is no news; the declarations are wanted.
    let _incomplete = Config::read(&mut document);
    document.markdown("the gateway agent", "viworks-gateway-agent")
}
