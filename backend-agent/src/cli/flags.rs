//! Every subcommand, flag and help text, and how the values of flags are read.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use viworks_api::{REASON_BYTES_MAX, Scope};
use viworks_common::id::{
    ApiKeyId, GatewayName, InvalidId, LabelKey, TrustDomain, check_label_value,
};
use viworks_runtime::ask::ANSWER_SECONDS;
use viworks_runtime::config::address_help;

use crate::config::TlsEnd;
use crate::data::GatewayRef;

/// Where the package's service looks for its configuration.
const INSTALLED: &str = "/etc/viworks/backend/backend.toml";

/// The backend of ViWorkS.
#[derive(Debug, Parser)]
#[command(name = "viworks-backend-agent", version, about)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Subcommands,
}

#[derive(Debug, Clone, Args)]
pub(super) struct ConfigFlag {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = INSTALLED)]
    pub(super) config: PathBuf,
    /// The backend's own folder, whatever the configuration says
    #[arg(long, value_name = "DIR")]
    pub(super) state_folder: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Subcommands {
    /// Run the backend
    Serve {
        #[command(flatten)]
        config: ConfigFlag,
        /// Write the addresses as JSON once both listeners take connections
        #[arg(long, value_name = "FILE")]
        ready_file: Option<PathBuf>,
    },
    /// Ask the running backend whether it is well, in one line: for service managers, containers and scripts
    ///
    /// Ends with 0 when it is, 20 when it answers and is not, 69 when it does not answer, 78 when the configuration
    /// cannot be used and no backend answers either.
    Health(HealthFlags),
    /// What helps whoever is asked for help
    #[command(subcommand)]
    Diag(DiagCommand),
    /// Check the configuration and everything it names, and say every problem
    CheckConfig {
        #[command(flatten)]
        config: ConfigFlag,
        /// Try whether the servers of the database and of the queue take us, too
        #[arg(long)]
        connect: bool,
        /// For people or for programs
        #[arg(short, long, value_enum, default_value_t = Format::Table)]
        output: Format,
    },
    /// What can be set, and what is set
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Create the database or bring it up to date
    Migrate {
        #[command(flatten)]
        config: ConfigFlag,
        /// Only list what would be applied
        #[arg(long)]
        dry_run: bool,
        /// For people or for programs
        #[arg(short, long, value_enum, default_value_t = Format::Table)]
        output: Format,
    },
    /// Move everything from the embedded database to PostgreSQL; the backend must not run
    MigrateStore {
        #[command(flatten)]
        config: ConfigFlag,
        /// Where to: postgres://USER@HOST:PORT/DATABASE, an empty database
        #[arg(long, value_name = "URL")]
        to: String,
        /// The file with the password of USER
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
        /// The authority that signed the server's certificate, PEM, where that is a private one
        #[arg(long, value_name = "FILE")]
        ca_file: Option<PathBuf>,
        /// Only compare what was moved
        #[arg(long)]
        verify: bool,
    },
    /// Keys for the operators' API
    #[command(subcommand)]
    Apikey(ApikeyCommand),
    /// Certificates and identities
    #[command(subcommand)]
    Pki(PkiCommand),
    /// Gateways
    #[command(subcommand)]
    Gateway(GatewayCommand),
    /// nginx in front of the backend
    #[command(subcommand)]
    Nginx(NginxCommand),
}

#[derive(Debug, Args)]
pub(super) struct HealthFlags {
    /// The configuration, which names the address
    #[arg(long, value_name = "FILE", default_value = INSTALLED)]
    pub(super) config: PathBuf,
    /// Where it answers operators; then no configuration is read
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = address, conflicts_with = "config")]
    pub(super) address: Option<SocketAddr>,
    /// What is asked
    #[arg(long, value_enum, default_value_t = Probe::Ready)]
    pub(super) probe: Probe,
    /// How long the answer may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = ANSWER_SECONDS)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=60))]
    pub(super) timeout: u64,
    /// For people or for programs
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub(super) output: Format,
}

#[derive(Debug, Subcommand)]
pub(super) enum DiagCommand {
    /// Collect what helps into one new file, and list what is in it
    ///
    /// What looks like a secret is taken out. It has the configuration and what check-config says of it, what is public
    /// of the certificates, the sizes of the files in the state folder, limits of the machine, and what the running
    /// backend answers. Run it as the backend's user.
    Collect {
        #[command(flatten)]
        config: ConfigFlag,
        /// A file with an API key, for the health document and the metrics
        #[arg(long, value_name = "FILE")]
        key_file: Option<PathBuf>,
        /// Where the backend answers operators; `listen` of [api] when left out
        #[arg(long, value_name = "ADDRESS:PORT", value_parser = address)]
        address: Option<SocketAddr>,
        /// A log of which the end is taken along; `-` for the standard input, as of journalctl
        #[arg(long, value_name = "FILE")]
        log: Option<PathBuf>,
        /// Where it goes, a new file; a name with the time in this folder when left out
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

/// What a health check asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Probe {
    /// Does the process answer?
    Live,
    /// Does it take requests?
    Ready,
    /// Has it finished starting?
    Startup,
}

/// How an answer is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Lines for people
    Table,
    /// A JSON document
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Print a configuration with every key and what it is for, to begin with
    Example,
    /// Print every key with the value that is in force and where it came from: the file or one in conf.d with its
    /// line, a variable of the environment, or the default. Of secrets it names the files only
    Explain {
        #[command(flatten)]
        config: ConfigFlag,
        /// For people or for programs
        #[arg(short, long, value_enum, default_value_t = Format::Table)]
        output: Format,
    },
    /// Print the reference of all keys as Markdown
    Reference,
    /// Print the JSON Schema of the configuration, for editors and other programs
    Schema,
}

#[derive(Debug, Subcommand)]
pub(super) enum ApikeyCommand {
    /// Make an API key and write it to a new file
    Create {
        #[command(flatten)]
        config: ConfigFlag,
        /// What it may do, separated by commas, or `all`
        #[arg(long, value_name = "SCOPES", value_parser = scopes)]
        scopes: Scopes,
        /// Its name, which lists and the audit trail show
        #[arg(long, value_name = "NAME", default_value = "operator")]
        name: String,
        /// After how many days it ends; never when left out
        #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u64).range(1..=3_650))]
        expires_days: Option<u64>,
        /// Where it goes, a new file
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// List API keys
    Ls(ConfigFlag),
    /// Revoke an API key; what uses it is refused from then on
    Revoke {
        #[command(flatten)]
        config: ConfigFlag,
        /// Its id
        id: ApiKeyId,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum PkiCommand {
    /// Make an authority, the server's keys, the master key and a complete configuration
    Init {
        /// Where everything goes
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// The trust domain in every gateway's name
        #[arg(long, default_value = "viworks.internal")]
        trust_domain: TrustDomain,
        /// A DNS name or address of the server; may be repeated
        #[arg(long = "server-name", default_values = ["localhost", "127.0.0.1", "::1"])]
        server_names: Vec<String>,
        /// For a machine with the package: the state goes where its service keeps it
        #[arg(long)]
        installed: bool,
        /// An authority of your own, an intermediate or a root: its certificate, with those above it behind it
        #[arg(long, value_name = "FILE", requires = "signs")]
        ca_certificate: Option<PathBuf>,
        /// The private key of that authority, which is copied
        #[arg(
            long,
            value_name = "FILE",
            group = "signs",
            requires = "ca_certificate"
        )]
        ca_key: Option<PathBuf>,
        /// A program that has the key of that authority, by its whole path; its arguments each by the same flag again
        #[arg(
            long,
            value_name = "WORD",
            group = "signs",
            requires = "ca_certificate"
        )]
        #[arg(allow_hyphen_values = true)]
        ca_sign_command: Vec<String>,
    },
    /// Tie the database to the master key that is configured, after the old one was lost. Gateways with keys of the old
    /// one have to be issued again; with the backends stopped
    ReplaceMasterKey {
        #[command(flatten)]
        config: ConfigFlag,
    },
    /// Let a gateway join that does not reach the door: sign the request that `viworks-gateway-agent enroll
    /// --request-out` wrote there, and write the answer for it, which holds its secrets
    SignRequest {
        #[command(flatten)]
        config: ConfigFlag,
        /// The request
        request: PathBuf,
        /// The gateway's name
        #[arg(long)]
        name: GatewayName,
        /// The answer, a new file for its owner alone
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// A label as key=value; may be repeated
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
        labels: Vec<(String, String)>,
        /// Where the gateway reaches the backend: wss://HOST:PORT; `public_url` of [agents], or where it listens,
        /// when left out
        #[arg(long)]
        url: Option<String>,
        /// How many days its certificate lives; as long as one by ticket when left out
        #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u64).range(1..=3_650))]
        days: Option<u64>,
    },
    /// Write the list of certificates that are revoked or replaced and have not ended: a CRL, signed by the authority
    ///
    /// A backend with `crl_file` in `[keys]` keeps it written by itself.
    Crl {
        #[command(flatten)]
        config: ConfigFlag,
        /// Where it goes; an earlier one is replaced
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Move the site to the master key in `master_key_file`, while that in `previous_master_key_file` is accepted, too:
    /// gateways are given new keys over their sessions, and none is cut off
    #[command(
        after_help = "Examples:\n  viworks-backend-agent pki rotate-master-key --config backend.toml --dry-run\n  viworks-backend-agent pki rotate-master-key --config backend.toml\n  viworks-backend-agent pki rotate-master-key --config backend.toml --finish"
    )]
    RotateMasterKey {
        #[command(flatten)]
        config: ConfigFlag,
        /// Say what would become of the site and who is still to move, and change nothing
        #[arg(long)]
        dry_run: bool,
        /// See that nobody needs the previous key any more, and that each backend was started anew, before it is taken
        /// out of the configuration
        #[arg(long)]
        finish: bool,
        /// With --finish: also where gateways would be cut off, or backends were not started anew; needs --reason
        #[arg(long, requires_all = ["finish", "reason"])]
        force: bool,
        /// Why that is so; it is kept in the audit trail
        #[arg(long, value_name = "TEXT", value_parser = reason, requires = "force")]
        reason: Option<String>,
    },
    /// Let a gateway join and write everything it needs: keys, identity, configuration and the shipped catalogue
    IssueGateway {
        #[command(flatten)]
        config: ConfigFlag,
        /// Its name
        name: GatewayName,
        /// Where its files go
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// A label as key=value; may be repeated
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
        labels: Vec<(String, String)>,
        /// Where the gateway reaches the backend: wss://HOST:PORT; `public_url` of [agents], or where it listens,
        /// when left out
        #[arg(long)]
        url: Option<String>,
        /// How many days its certificate lives; as long as one by ticket when left out
        #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u64).range(1..=3_650))]
        days: Option<u64>,
        /// A gateway of the local demo: it may use commands that belong to its own user
        #[arg(long)]
        demo: bool,
        /// For a machine with the package: state and local API go where its service keeps them
        #[arg(long, conflicts_with = "demo")]
        installed: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum GatewayCommand {
    /// Revoke a gateway: its session ends, and it gets no other one unless `viworks gateway replace` lets it in again
    Revoke {
        #[command(flatten)]
        config: ConfigFlag,
        /// Its name or id
        gateway: GatewayRef,
        /// Why; shown with the gateway, and kept in the audit trail
        #[arg(long, value_name = "TEXT", value_parser = reason)]
        reason: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum NginxCommand {
    /// Write a configuration of nginx for this backend
    Render {
        #[command(flatten)]
        config: ConfigFlag,
        /// Where the gateways' TLS ends; what `tls_ends_at` of [agents] says when left out
        #[arg(long, value_parser = mode)]
        mode: Option<TlsEnd>,
        /// The name that gateways dial; the host of `public_url` in [agents] when left out
        #[arg(long, value_name = "NAME")]
        agents_name: Option<String>,
        /// The name at which machines enrol; the host of `public_url` in [enrolment], or enrol.DOMAIN, when left out
        #[arg(long, value_name = "NAME")]
        enrolment_name: Option<String>,
        /// The name that operators use
        #[arg(long, value_name = "NAME")]
        api_name: String,
        /// Where a backend takes gateways, may be repeated; `listen` of [agents] when left out
        #[arg(long = "agents-backend", value_name = "HOST:PORT")]
        agents_backends: Vec<String>,
        /// Where a backend has the door for new gateways, may be repeated; `listen` of [enrolment] when left out
        #[arg(long = "enrolment-backend", value_name = "HOST:PORT")]
        enrolment_backends: Vec<String>,
        /// Where a backend has its API, may be repeated; `listen` of [api] when left out
        #[arg(long = "api-backend", value_name = "HOST:PORT")]
        api_backends: Vec<String>,
        /// The certificate for operators, PEM, with those that lead to its root
        #[arg(
            long,
            value_name = "FILE",
            default_value = "/etc/viworks/nginx/api.crt"
        )]
        certificate: PathBuf,
        /// Its private key, PEM
        #[arg(
            long,
            value_name = "FILE",
            default_value = "/etc/viworks/nginx/api.key"
        )]
        key: PathBuf,
        /// Where it goes; the standard output when left out
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Replace a file that has other content
        #[arg(long, requires = "out")]
        force: bool,
    },
    /// Check a configuration of nginx, and that renewals keep the keys that gateways pin
    Check {
        #[command(flatten)]
        config: ConfigFlag,
        /// nginx's configuration
        #[arg(default_value = "/etc/nginx/nginx.conf")]
        file: PathBuf,
        /// Certbot's folder of renewals; /etc/letsencrypt/renewal when left out, where that is there
        #[arg(long, value_name = "DIR")]
        renewal: Option<PathBuf>,
        /// For people or for programs
        #[arg(short, long, value_enum, default_value_t = Format::Table)]
        output: Format,
    },
}

/// What a key may do, as one argument.
#[derive(Debug, Clone)]
pub(super) struct Scopes(pub(super) BTreeSet<Scope>);

fn scopes(text: &str) -> Result<Scopes, String> {
    if text == "all" {
        return Ok(Scopes(Scope::ALL.iter().copied().collect()));
    }
    let known = |name: &str| {
        Scope::ALL
            .iter()
            .copied()
            .find(|scope| scope.name() == name)
    };
    let scopes = text.split(',').map(|name| {
        known(name).ok_or_else(|| {
            let names: Vec<_> = Scope::ALL.iter().map(|scope| scope.name()).collect();
            format!("{name:?} is no scope; known are all, {}", names.join(", "))
        })
    });
    scopes.collect::<Result<_, _>>().map(Scopes)
}

fn address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse().map_err(|_no_address| address_help(text))
}

fn mode(text: &str) -> Result<TlsEnd, String> {
    match text {
        "passthrough" => Ok(TlsEnd::Backend),
        "terminate" => Ok(TlsEnd::Proxy),
        _ => Err("a mode is passthrough or terminate".to_owned()),
    }
}

/// Reads why something is done.
fn reason(text: &str) -> Result<String, String> {
    let text = text.trim();
    if (1..=REASON_BYTES_MAX).contains(&text.len()) {
        Ok(text.to_owned())
    } else {
        Err(format!("a reason has 1 to {REASON_BYTES_MAX} bytes"))
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("a label is written key=value")?;
    let key: LabelKey = key.parse().map_err(|error: InvalidId| error.to_string())?;
    check_label_value(value).map_err(|error| error.to_string())?;
    Ok((key.to_string(), value.to_owned()))
}

/// What a number of days stands for.
pub(super) const fn days(days: u64) -> Duration {
    Duration::from_secs(days * 24 * 3_600)
}

#[cfg(test)]
mod tests {
    use clap::{Command, CommandFactory as _};

    use super::*;

    #[test]
    fn every_verb_has_the_configuration_of_the_package_unless_another_is_named() {
        let unit = include_str!("../../../systemd/viworks-backend-agent.service");
        assert!(unit.contains(&format!(" --config {INSTALLED}\n")), "{unit}");
        let mut seen = 0;
        let root = Cli::command();
        let mut waiting: Vec<&Command> = vec![&root];
        while let Some(verb) = waiting.pop() {
            waiting.extend(verb.get_subcommands());
            let Some(flag) = verb.get_arguments().find(|flag| flag.get_id() == "config") else {
                continue;
            };
            let default: Vec<_> = flag.get_default_values().iter().collect();
            assert_eq!(default, [INSTALLED], "{}", verb.get_name());
            seen += 1;
        }
        assert!(seen > 10, "{seen}");
    }

    #[test]
    fn a_health_check_of_an_address_reads_no_configuration() {
        let asked = |arguments: &[&str]| {
            let words = ["viworks-backend-agent", "health"];
            Cli::try_parse_from([&words[..], arguments].concat())
        };
        let cli = asked(&["--address", "127.0.0.1:8080"]).unwrap();
        let Subcommands::Health(flags) = cli.command else {
            panic!("another verb");
        };
        assert!(flags.address.is_some());
        assert!(asked(&[]).is_ok());
        let both = asked(&["--address", "127.0.0.1:8080", "--config", "x"]);
        let said = both.map(|_both| ()).unwrap_err().to_string();
        assert!(said.contains("--address"), "{said}");
    }
}
