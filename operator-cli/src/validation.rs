//! Is an installation fit for production? Checks that measure, each with a limit, and what they come to: go or no-go.
//!
//! Everything is asked from outside, as operators and gateways do: nothing here knows more of the backend than they.

mod agent;
mod api;
mod causes;
mod door;
mod papers;
mod report;
mod site;
mod trust;
mod wire;

use std::path::PathBuf;

use clap::ValueEnum;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::exit::ExitCode;

use self::papers::Papers;
use self::site::Site;
use crate::client::Client;
use crate::failure::Failure;

pub use self::report::{Check, CheckResult, Finding, Report, Verdict, junit};

/// The checks of a running installation, in the order in which they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum CheckName {
    Health,
    Configuration,
    Upgrade,
    Mtls,
    NoCertificate,
    ForeignCertificate,
    Replay,
    Registration,
    Duplicate,
    RoundTrip,
    DataFlow,
    Restart,
    Limits,
    Enrolment,
    Renewal,
    Pins,
    // The last one: whoever is revoked is good for no other check.
    Revocation,
}

impl CheckName {
    /// The name by which it is chosen and reported.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Health => "health",
            Self::Configuration => "configuration",
            Self::Upgrade => "upgrade",
            Self::Mtls => "mtls",
            Self::NoCertificate => "no_certificate",
            Self::ForeignCertificate => "foreign_certificate",
            Self::Replay => "replay",
            Self::Registration => "registration",
            Self::Duplicate => "duplicate",
            Self::RoundTrip => "round_trip",
            Self::DataFlow => "data_flow",
            Self::Restart => "restart",
            Self::Limits => "limits",
            Self::Enrolment => "enrolment",
            Self::Renewal => "renewal",
            Self::Pins => "pins",
            Self::Revocation => "revocation",
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::Health => "health endpoints",
            Self::Configuration => "configuration fails closed",
            Self::Upgrade => "WebSocket upgrade",
            Self::Mtls => "mutual TLS",
            Self::NoCertificate => "no client certificate",
            Self::ForeignCertificate => "foreign certificate",
            Self::Replay => "replayed opening",
            Self::Registration => "registration",
            Self::Duplicate => "second machine",
            Self::RoundTrip => "command round trip",
            Self::DataFlow => "data flow",
            Self::Restart => "gateway restarted",
            Self::Limits => "resource limits",
            Self::Enrolment => "door for new gateways",
            Self::Renewal => "certificates renewed",
            Self::Pins => "pinned keys",
            Self::Revocation => "gateway revoked",
        }
    }

    const fn limit(self) -> &'static str {
        match self {
            Self::Health => "200, nothing fails",
            Self::Configuration => "exit code 78",
            Self::Upgrade => "101",
            Self::Mtls => "TLS 1.3, pinned key",
            Self::NoCertificate | Self::ForeignCertificate => "not 101",
            Self::Replay => "refused",
            Self::Registration => "once, < 10 s",
            Self::Duplicate => "refused",
            Self::RoundTrip | Self::Restart => "< 2 s",
            Self::DataFlow => "exact",
            Self::Limits => "in force",
            Self::Enrolment => "pinned key, refused",
            Self::Renewal => "0 overdue online",
            Self::Pins => "promoted, confirmed",
            Self::Revocation => "cut in < 1 s, refused",
        }
    }
}

/// What is to be validated.
#[derive(Debug)]
pub struct Wanted {
    /// The folder of a gateway that never ran.
    pub gateway: PathBuf,
    /// The gateway agent.
    pub agent: PathBuf,
    /// The door by which machines become gateways, where the gateway's folder does not name it.
    pub door: Option<String>,
    /// How many commands are timed.
    pub commands: u32,
    /// How many records are handed in.
    pub records: u32,
    /// Only these checks; all when empty.
    pub only: Vec<CheckName>,
}

/// Runs every check, also when earlier ones failed, and tells `told` what each is about as it begins. What it has
/// started is ended, also when `stop` comes first.
///
/// # Errors
/// When there is nothing to validate with, the gateway is not there for this alone, or it was stopped.
pub async fn validate(
    client: &Client,
    wanted: &Wanted,
    stop: impl Future<Output = ()>,
    mut told: impl FnMut(&str),
) -> Result<Report, Failure> {
    let papers = Papers::read(&wanted.gateway)?;
    let mut report = Report::new(client.server(), SystemClock.wall());
    let mut site = Site::new(client, wanted, papers);
    let checks = async {
        site.is_unused().await?;
        for name in CheckName::value_variants().iter().copied() {
            if !wanted.only.is_empty() && !wanted.only.contains(&name) {
                continue;
            }
            told(name.title());
            let begun = tokio::time::Instant::now();
            let found = site.check(name).await;
            let took = begun.elapsed();
            let check = Check::new(name.name(), name.title(), name.limit(), found, took);
            report.add(check);
        }
        report.out_of(CheckName::value_variants().len());
        Ok(())
    };
    let ended = tokio::select! {
        biased;
        () = stop => Err(Failure::new(
            ExitCode::Interrupted,
            "stopped before there was a verdict; nothing that was started runs on",
        )),
        ended = checks => ended,
    };
    site.close().await;
    ended.map(|()| report)
}
