//! Which backend a verb speaks to, and with which key: flag before environment before context.

use viworks_runtime::exit::ExitCode;

use crate::client::Client;
use crate::contexts::Contexts;
use crate::failure::Failure;
use crate::flags::Global;
use crate::program;

/// A client for it.
pub(super) fn client(global: &Global) -> Result<Client, Failure> {
    let contexts = Contexts::load(global.config_dir.as_deref())?;
    // A variable that is empty is one that is not set.
    let given = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
    let name = given(&global.context).or_else(|| contexts.current.clone());
    let context = name.map(|name| contexts.get(&name)).transpose()?;
    let server = given(&global.server)
        .or_else(|| context.map(|context| context.server.clone()))
        .ok_or_else(|| nobody(&contexts))?;
    // A remembered key belongs to the remembered server and goes to no other.
    let remembered = context
        .filter(|context| is_the_same(&context.server, &server))
        .and_then(|context| context.token_file.as_ref());
    let token_file = global
        .token_file
        .as_ref()
        .filter(|file| !file.as_os_str().is_empty())
        .or(remembered);
    Client::new(
        &server,
        token_file.map(std::path::PathBuf::as_path),
        global.allow_http,
    )
}

/// Whether two texts name one server: a URL may be written in several ways.
fn is_the_same(one: &str, other: &str) -> bool {
    let origin = |text: &str| Some(reqwest::Url::parse(text).ok()?.to_string());
    let without_end = |text: String| text.trim_end_matches('/').to_owned();
    match (origin(one), origin(other)) {
        (Some(one), Some(other)) => without_end(one) == without_end(other),
        (Some(_) | None, None) | (None, Some(_)) => one == other,
    }
}

fn nobody(contexts: &Contexts) -> Failure {
    let failure = Failure::new(ExitCode::Usage, "no backend was named")
        .with("fix: viworks up starts one here; or name one: --server URL --token-file FILE (VIWORKS_SERVER, VIWORKS_TOKEN_FILE)");
    match contexts.names().as_slice() {
        [] => failure,
        names => failure.with(format!(
            "or select a context that is known: {} context use NAME ({})",
            program::name(),
            names.join(" ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::is_the_same;

    #[test]
    fn a_server_is_the_same_however_it_is_written() {
        let remembered = "http://127.0.0.1:8080";
        for (named, same) in [
            ("http://127.0.0.1:8080", true),
            ("http://127.0.0.1:8080/", true),
            ("HTTP://127.0.0.1:8080", true),
            ("http://127.0.0.1:8081", false),
            ("https://127.0.0.1:8080", false),
            ("http://127.0.0.1:8080.example.org", false),
            ("http://user@127.0.0.1:8080", false),
            // Whose key it is decides the name that was remembered, and not where a name leads today.
            ("http://localhost:8080", false),
        ] {
            assert_eq!(is_the_same(remembered, named), same, "{named}");
        }
        assert!(is_the_same(
            "https://api.example.org",
            "https://API.example.org:443"
        ));
    }
}
