//! What is written about the configuration: `docs/configuration_gateway.md`, its schema and its example.

use viworks_runtime::config::{Document, Environment, Form, Whose};

use super::{Config, LIVE};

/// Whose it is.
const OWN: Whose = Whose {
    name: "the gateway agent",
    program: "viworks-gateway-agent",
    live: LIVE,
};

/// It in one of the forms.
#[must_use]
pub fn describe(form: Form) -> String {
    let mut document = Document::parse("gateway.toml".as_ref(), "", &Environment::default());
    // What an empty file lacks is no news; the declarations are wanted.
    let _incomplete = Config::read(&mut document);
    document.describe(form, &OWN)
}
