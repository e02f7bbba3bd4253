//! A section declared once: the struct that the agent uses, how each key is read, and its line of the reference.

/// Declares a section of the configuration.
///
/// What stands above a field is its documentation and its line of the reference; its name is the key (with `_ms` behind
/// it for a duration, which says its unit). What follows `=` is the method of [`Section`](crate::config::Section) that
/// reads it, without the key and the help. `like` gives an example of what has no default. `else` gives the value for
/// what may be left out, and may use the fields above it. `as` gives a key of another name.
///
/// With `[name]` above it the struct is that section of the document; without, it is a part of one. Two methods are the
/// macro's own: `part(Type)` reads such a part from the same section, and `by(function)` whatever has a form of its
/// own. `check` names a function that is shown the whole, to note what only several keys together show.
///
/// ```
/// # use std::time::Duration;
/// # use viworks_runtime::config::{Document, Environment, Section};
/// viworks_runtime::settings! {
///     /// The connection to the backend.
///     [outbound]
///     #[derive(Debug)]
///     struct Outbound from section {
///         /// Where the backend listens for agents.
///         url: String = required_url(&["wss"]) like "wss://agents.example.org:8081",
///         /// The name in its certificate; `localhost` when left out.
///         server_name: String = optional_str() else "localhost".to_owned(),
///         /// How long one attempt may take.
///         connect_timeout: Duration = duration_ms(Duration::from_secs(10), Duration::ZERO..=Duration::from_secs(60)),
///     }
///     check Outbound::check
/// }
///
/// impl Outbound {
///     fn check(&self, section: &mut Section<'_>) {
///         if self.url.contains(&self.server_name) {
///             section.problem("server_name", "it is in the URL already", "remove it");
///         }
///     }
/// }
///
/// let text = "[outbound]\nurl = \"wss://backend.example:8081\"\nconnect_timeout_ms = 500";
/// let mut document = Document::parse("agent.toml".as_ref(), text, &Environment::default());
/// let outbound = Outbound::read(&mut document);
/// assert_eq!(outbound.connect_timeout, Duration::from_millis(500));
/// assert_eq!(document.reference()[0].help, "Where the backend listens for agents.");
/// document.finish()?;
/// # Ok::<_, viworks_runtime::config::Problems>(())
/// ```
#[macro_export]
macro_rules! settings {
    (
        $(#[doc = $about:literal])+
        [$table:ident]
        $(#[$attribute:meta])*
        $visibility:vis struct $name:ident from $section:ident {
            $(
                $(#[doc = $help:literal])+
                $field:ident $(as $key:literal)?: $type:ty = $method:ident($($argument:tt)*)
                    $(like $example:literal)? $(else $left_out:expr)?
            ),+ $(,)?
        }
        $(check $check:path)?
    ) => {
        $(#[doc = $about])+
        $(#[$attribute])*
        $visibility struct $name {
            $($(#[doc = $help])+ $visibility $field: $type,)+
        }

        impl $name {
            /// Reads the section. What it lacks is noted in the document, which then refuses to finish.
            $visibility fn read(document: &mut $crate::config::Document) -> Self {
                let about = concat!($($about),+).trim_start();
                let $section = &mut document.section(stringify!($table), about);
                $(
                    let $field: $type = $crate::settings!(
                        @read $section, $crate::settings!(@key $field $method $($key)?), concat!($($help),+).trim_start(),
                        [$($example)?] $method($($argument)*) $(else $left_out)?
                    );
                )+
                let read = Self { $($field,)+ };
                $($check(&read, $section);)?
                read
            }
        }
    };
    (
        $(#[doc = $about:literal])+
        $(#[derive($($derived:ident),+)])?
        $visibility:vis struct $name:ident from $section:ident {
            $(
                $(#[doc = $help:literal])+
                $field:ident $(as $key:literal)?: $type:ty = $method:ident($($argument:tt)*)
                    $(like $example:literal)? $(else $left_out:expr)?
            ),+ $(,)?
        }
    ) => {
        $(#[doc = $about])+
        $(#[derive($($derived),+)])?
        $visibility struct $name {
            $($(#[doc = $help])+ $visibility $field: $type,)+
        }

        impl $name {
            /// Reads these keys of a section.
            fn read($section: &mut $crate::config::Section<'_>) -> Self {
                $(
                    let $field: $type = $crate::settings!(
                        @read $section, $crate::settings!(@key $field $method $($key)?), concat!($($help),+).trim_start(),
                        [$($example)?] $method($($argument)*) $(else $left_out)?
                    );
                )+
                Self { $($field,)+ }
            }
        }
    };
    (@key $field:ident $method:ident $key:literal) => { $key };
    (@key $field:ident duration_ms) => { concat!(stringify!($field), "_ms") };
    (@key $field:ident $method:ident) => { stringify!($field) };
    (@read $section:ident, $key:expr, $help:expr, [] part($part:ty)) => { <$part>::read($section) };
    (@read $section:ident, $key:expr, $help:expr, [] by($function:expr)) => { $function($section) };
    (@read $section:ident, $key:expr, $help:expr,
        [$($example:literal)?] $method:ident($($argument:expr),* $(,)?)
    ) => {{
        $($section.like($key, $example);)?
        $section.$method($key, $($argument,)* $help)
    }};
    (@read $section:ident, $key:expr, $help:expr,
        [$($example:literal)?] $method:ident($($argument:expr),* $(,)?) else $left_out:expr
    ) => {{
        $($section.like($key, $example);)?
        $section.$method($key, $($argument,)* $help).unwrap_or_else(|| $left_out)
    }};
}
