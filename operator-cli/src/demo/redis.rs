//! The private Redis server of a demo: found where it is installed, with nothing on disk but its configuration, reached
//! over loopback with a password.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use viworks_runtime::exit::ExitCode;
use viworks_runtime::{config, files};

use super::layout::{Layout, QUEUE_SERVER, cannot_write};
use super::named::{NAME, Named};
use super::processes::Running;
use crate::failure::Failure;
use crate::views;

/// The oldest version that the backend works with.
const VERSION_MIN: (u32, u32) = (6, 2);
/// Its program, and that of its fork.
const PROGRAMS: [&str; 2] = ["redis-server", "valkey-server"];
/// Where distributions keep it, for who has a path without.
const PLACES: [&str; 3] = ["/usr/bin", "/usr/local/bin", "/usr/sbin"];
/// How long the server may take to answer, and how long one answer may take.
const READY_WITHIN: Duration = Duration::from_secs(20);
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(20);

/// How the backends' configuration names it.
pub(super) const NAMED: Named = Named {
    section: "queue",
    scheme: "redis",
    rest: "",
    password_file: "queue.password",
};

/// The server that is installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Installed {
    program: PathBuf,
    /// As it says itself: the product, then the version.
    title: String,
}

impl Installed {
    /// Looks where commands are found.
    pub(super) fn find() -> Result<Self, Failure> {
        let fix = "fix: install it (on Debian: apt-get install redis-server), or leave it out: --stores postgres";
        let (oldest, oldest_minor) = VERSION_MIN;
        let environment = config::environment();
        let path = environment.get("PATH").unwrap_or_default();
        let folders: Vec<PathBuf> = std::env::split_paths(path)
            .chain(PLACES.map(PathBuf::from))
            .collect();
        let mut too_old = None;
        for name in PROGRAMS {
            let mut programs = folders.iter().map(|folder| folder.join(name));
            let Some(program) = programs.find(|program| program.is_file()) else {
                continue;
            };
            let output = Command::new(&program).arg("--version").output()?;
            match read_version(&String::from_utf8_lossy(&output.stdout)) {
                Some((title, version)) if version >= VERSION_MIN => {
                    return Ok(Self { program, title });
                }
                Some((title, _version)) => too_old = Some(title),
                None => {}
            }
        }
        let why = match too_old {
            Some(found) => format!("{found} is installed here"),
            None => format!("there is no {}", PROGRAMS.join(" and no ")),
        };
        Err(Failure::new(
            ExitCode::Config,
            format!(
                "Redis {oldest}.{oldest_minor} or later, or Valkey, is not installed here: {why}"
            ),
        )
        .with(fix))
    }
}

/// Reads what the program says of itself, such as `Redis server v=7.0.15 sha=…`.
fn read_version(said: &str) -> Option<(String, (u32, u32))> {
    let mut words = said.split_whitespace();
    let product = words.next()?;
    let version = words.find_map(|word| word.strip_prefix("v="))?;
    let mut numbers = version.split('.').map(str::parse);
    let parsed = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some((format!("{product} {version}"), parsed))
}

/// Starts the server and lets the backends' configuration name it.
pub(super) async fn start(
    layout: &Layout,
    installed: &Installed,
    running: &mut Vec<Running>,
) -> Result<(), Failure> {
    let step = Instant::now();
    let password = NAMED.password(layout)?;
    let folder = layout.make_redis()?;
    let port = NAMED.configure(&layout.backend_config())?;
    let file = folder.join("server.conf");
    let text = configuration(port, &password);
    files::write_atomic(&file, text.as_bytes()).map_err(|error| cannot_write(&error))?;
    let mut server = Command::new(&installed.program);
    server.arg(&file).current_dir(&folder);
    running.push(Running::spawn(layout, QUEUE_SERVER, server)?);
    let process = running.last_mut().expect("it was pushed on the line above");
    answers(layout, port, &password, process).await?;
    views::demo::step(
        "queue",
        &format!("redis://127.0.0.1:{port}"),
        &installed.title,
        step.elapsed(),
    );
    Ok(())
}

/// What is in its configuration. It holds hints only, so nothing is to be kept.
fn configuration(port: u16, password: &str) -> String {
    let lines = [
        "bind 127.0.0.1".to_owned(),
        format!("port {port}"),
        "user default off".to_owned(),
        format!("user {NAME} on >{password} ~* &* +@all"),
        "save \"\"".to_owned(),
        "appendonly no".to_owned(),
        "maxmemory 64mb".to_owned(),
        "maxmemory-policy noeviction".to_owned(),
        // Its title would take the place of the environment, by which the demo's processes are known.
        "set-proc-title no".to_owned(),
    ];
    lines.join("\n") + "\n"
}

/// Waits until the server lets the backends in.
async fn answers(
    layout: &Layout,
    port: u16,
    password: &str,
    server: &mut Running,
) -> Result<(), Failure> {
    let deadline = Instant::now() + READY_WITHIN;
    loop {
        if lets_in(port, password) {
            return Ok(());
        }
        if let Some(failure) = server.ended()? {
            return Err(failure);
        }
        if Instant::now() >= deadline {
            return Err(Failure::new(
                ExitCode::Unavailable,
                format!("Redis did not answer in {} s", READY_WITHIN.as_secs()),
            )
            .with(format!("log: {}", layout.log(QUEUE_SERVER).display())));
        }
        sleep(POLL).await;
    }
}

/// Whether what listens there knows the password, as no stranger on that port does.
fn lets_in(port: u16, password: &str) -> bool {
    let ask = || -> std::io::Result<bool> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut stream = TcpStream::connect_timeout(&address, ANSWER_WITHIN)?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        stream.write_all(format!("AUTH {NAME} {password}\r\n").as_bytes())?;
        let mut answer = [0; 5];
        stream.read_exact(&mut answer)?;
        Ok(answer == *b"+OK\r\n")
    };
    ask().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::read_version;

    #[test]
    fn a_version_is_read_as_either_product_says_it() {
        for (said, title, version) in [
            (
                "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64",
                "Redis 7.0.15",
                (7, 0),
            ),
            ("Valkey server v=8.1.1 sha=0", "Valkey 8.1.1", (8, 1)),
        ] {
            assert_eq!(read_version(said), Some((title.to_owned(), version)));
        }
        for said in ["", "Redis server", "Redis server v=", "Redis server v=x.y"] {
            assert_eq!(read_version(said), None, "{said}");
        }
    }
}
