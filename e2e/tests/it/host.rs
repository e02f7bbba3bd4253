//! What a host does to an agent: mounts that hang, limits on processes, the place of process 1, cleaners of folders.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde_json::{Value, json};
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start, text};
use viworks_testkit::gateway::{ONCE, local_request, mark_starts};
use viworks_testkit::process::{Process, eventually};

/// A user that nobody is.
const NOBODY: &str = "65534";

fn write(folder: &Path, name: &str, text: &str) {
    let file = folder.join("commands.d").join(name);
    std::fs::write(&file, text).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// The text of a catalogue entry for a script.
fn script(name: &str, script: &str, more: &str) -> String {
    format!(
        "[[command]]\nname = \"{name}\"\ntitle = \"a test\"\nrisk = \"read\"\nidempotent = true\n\
         argv = [\"/bin/sh\", \"-c\", '''{script}''']\ntimeout_ms = 20000\n{more}\n"
    )
}

/// The text of a catalogue entry for one of the agent's own commands.
fn builtin(name: &str) -> String {
    format!(
        "[[command]]\nname = \"{name}\"\ntitle = \"a test\"\nrisk = \"read\"\nidempotent = true\n\
         argv = [\"builtin:{name}\"]\ntimeout_ms = 20000\n"
    )
}

/// A command, run to its end: how it ended.
async fn outcome(system: &Deployment, command: &str, key: &str) -> Value {
    let run = system.submit(command, key).await;
    system.finished(&run).await;
    let command = system.commands(&run).await.remove(0);
    let path = format!(
        "/v1/runs/{run}/commands/{}",
        command["id"].as_str().unwrap()
    );
    system.get(&path).await
}

async fn local(folder: &Path, path: &str) -> Option<(u16, Value)> {
    let (status, text) = local_request(folder, "GET", path, &json!({})).await.ok()?;
    Some((status, serde_json::from_str(&text).ok()?))
}

/// Waits until the agent says, or no longer says, that something is wrong; what it says.
async fn condition(folder: &Path, name: &str, there: bool) -> Option<Value> {
    eventually(&format!("{name}: {there}"), PATIENCE, async || {
        let (_status, health) = local(folder, "/v1/health").await?;
        let listed = health["conditions"].as_array()?;
        let found = listed.iter().find(|found| found["name"] == name).cloned();
        (found.is_some() == there).then_some(found)
    })
    .await
}

/// Starts a gateway by way of another program.
fn start_by(system: &Deployment, folder: &Path, by: &[&str], program: &Path) -> Process {
    let every = Duration::from_secs(1);
    start_that_reads(system, folder, by, program, every)
}

/// The same with an interval between readings of the host.
fn start_that_reads(
    system: &Deployment,
    folder: &Path,
    by: &[&str],
    program: &Path,
    every: Duration,
) -> Process {
    let (first, rest) = by.split_first().unwrap();
    let mut command = Command::new(first);
    command
        .args(rest)
        .arg(program)
        .args(["run", "--config", text(&folder.join("gateway.toml"))])
        .env(
            "VIWORKS__OUTBOUND__URL",
            format!("wss://{}/agent/v1/connect", system.agents_address()),
        )
        .env(
            "VIWORKS__COLLECT__INTERVAL_MS",
            every.as_millis().to_string(),
        )
        .env("VIWORKS__EXECUTOR__KILL_GRACE_MS", "200");
    Process::start(&mut command, &folder.join("gateway.log")).unwrap()
}

/// Whether root may do that with this machine, by running a program; says so when not.
#[expect(clippy::print_stderr, reason = "a skipped check must be seen")]
fn can(what: &str, command: &[&str]) -> bool {
    if !geteuid().is_root() {
        eprintln!("SKIPPED: {what}: only root can try it");
        return false;
    }
    let (first, rest) = command.split_first().unwrap();
    let can = Command::new(first)
        .args(rest)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !can {
        eprintln!("SKIPPED: {what}: this machine does not allow {command:?}");
    }
    can
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mount_that_hangs_holds_up_nothing_but_itself_and_is_named() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    let dead = system.path().join("dead mount");
    std::fs::create_dir(&dead).unwrap();
    let by = [
        "unshare",
        "--mount",
        env!("CARGO_BIN_EXE_hung_mount"),
        text(&dead),
    ];
    if !can("a mount that hangs", &[&by[..], &["/bin/true"]].concat()) {
        return;
    }
    mark_starts(&folder);
    let inside = format!(
        "working_directory = \"{}\"\nenvironment = {{ DB_PASSWORD = \"hunter2\" }}",
        dead.display()
    );
    write(
        &folder,
        "lost.toml",
        &script("test.lost", "true", &inside).replace("20000", "3000"),
    );
    // More of them than may hang of any one kind.
    let many: String = (0..100)
        .map(|n| {
            let program = text(&dead.join(format!("tool-{n}"))).to_owned();
            script(&format!("test.many-{n}"), "true", "").replace("/bin/sh", &program)
        })
        .collect();
    write(&folder, "many.toml", &many);
    let program = script("test.gone", "true", "").replace("/bin/sh", text(&dead.join("tool")));
    write(&folder, "gone.toml", &program);
    write(&folder, "disks.toml", &builtin("sys.disks"));
    write(&folder, "uptime.toml", &builtin("sys.uptime"));
    system.start_backend(Start::default()).await;
    let mut gateway = start_by(&system, &folder, &by, &Binaries::shipped().gateway());
    system.online("gw-1").await;

    let said = condition(&folder, "collector.disks", true).await.unwrap();
    let cause = said["cause"].as_str().unwrap();
    assert!(cause.contains(text(&dead)), "{said}");
    let (_status, status) = local(&folder, "/v1/status").await.unwrap();
    assert!(status["conditions"].to_string().contains("collector.disks"));
    let unavailable = status["commands"]["unavailable"].to_string();
    assert!(unavailable.contains("test.gone"), "{unavailable}");

    // Everybody else goes on: each stream gets readings made after that.
    let since = status["conditions"][0]["since"]
        .as_str()
        .unwrap()
        .to_owned();
    for stream in ["host.cpu", "host.memory", "host.disk", "host.network"] {
        eventually(&format!("{stream} goes on"), PATIENCE, async || {
            let path = format!("/v1/telemetry?gateway=gw-1&stream={stream}&from={since}");
            let page = system.get(&path).await;
            (!page["items"].as_array()?.is_empty()).then_some(())
        })
        .await;
    }
    let disks = outcome(&system, "sys.disks", "disks").await;
    assert_eq!(disks["state"], "succeeded", "{disks}");
    let table = disks["outcome"]["stdout"].to_string();
    assert!(
        table.contains("no answer") && table.contains("dead mount"),
        "{disks}"
    );
    assert_eq!(outcome(&system, ONCE, "1").await["state"], "succeeded");

    // Read again, all of that costs one look's time; commands go on meanwhile, and afterwards.
    gateway.signal(Signal::HUP);
    for n in 0..20 {
        let run = outcome(&system, "sys.uptime", &format!("beside-{n}")).await;
        assert_eq!(run["state"], "succeeded", "{run}");
    }
    let (code, answer) = local_request(&folder, "POST", "/v1/commands/test.many-7", &json!({}))
        .await
        .unwrap();
    assert!(
        code == 503 && answer.contains("it did not answer"),
        "{answer}"
    );

    // What is started there hangs by itself, until its time is up, and tells nobody what it was given.
    let lost = system.submit("test.lost", "lost").await;
    let held = eventually("the command waits for its folder", PATIENCE, async || {
        let all = command_lines();
        let agent = text(&Binaries::shipped().gateway()).to_owned();
        let is_held = |line: &String| {
            let mut words = line.split(' ');
            let program = words.next().unwrap_or_default();
            (program == "/proc/self/exe" || program == agent) && words.next() == Some("launch")
        };
        all.iter().any(is_held).then_some(all)
    })
    .await;
    assert!(
        held.iter().all(|line| !line.contains("hunter2")),
        "{held:?}"
    );
    system.finished(&lost).await;
    let lost = outcome(&system, "test.lost", "lost").await;
    assert_eq!(lost["state"], "timed_out", "{lost}");
    let took = lost["outcome"]["duration_ms"].as_u64().unwrap();
    assert!(took < 10_000, "{took}: {lost}");
    let body = json!({"command": "test.gone", "targets": "all"});
    let (_status, refused) = system
        .request("POST", "/v1/runs", Some(&body))
        .await
        .unwrap();
    assert!(
        refused.to_string().contains("it did not answer"),
        "{refused}"
    );
    assert_eq!(outcome(&system, ONCE, "2").await["state"], "succeeded");

    let status = gateway.stop(Duration::from_secs(30)).await;
    assert!(status.success(), "{status}: {}", gateway.log());
}

/// What everybody on this machine can read of every process.
fn command_lines() -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|process| std::fs::read(process.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .collect()
}

/// Whether a process has a thread of that name.
fn has_thread(pid: u32, name: &str) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter();
    threads.flatten().flatten().any(|thread| {
        let found = std::fs::read_to_string(thread.path().join("comm"));
        found.is_ok_and(|found| found.trim() == name)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_whose_start_hangs_in_a_file_ends_when_it_is_told_to() {
    let system = Deployment::new(Binaries::shipped());
    let dead = system.path().join("dead mount");
    std::fs::create_dir(&dead).unwrap();
    let by = [
        "unshare",
        "--mount",
        env!("CARGO_BIN_EXE_hung_mount"),
        // What the kernel does not let go of even to die could be ended by nobody.
        "--deaf",
        text(&dead),
    ];
    if !can("a start that hangs", &[&by[..], &["/bin/true"]].concat()) {
        return;
    }
    let binaries = Binaries::shipped();
    for (program, verb) in [(binaries.gateway(), "run"), (binaries.backend(), "serve")] {
        let (first, rest) = by.split_first().unwrap();
        let mut command = Command::new(first);
        let configuration = dead.join("agent.toml");
        command
            .args(rest)
            .arg(&program)
            .args([verb, "--config"])
            .arg(configuration);
        let log = system.path().join(format!("{verb}.log"));
        let mut agent = Process::start(&mut command, &log).unwrap();
        eventually("it reads what hangs", PATIENCE, async || {
            has_thread(agent.pid(), "setup").then_some(())
        })
        .await;
        let status = agent.stop(Duration::from_secs(30)).await;
        assert!(status.success(), "{verb}: {status}: {}", agent.log());
    }
}

/// What becomes that user.
const AS_NOBODY: [&str; 6] = [
    "setpriv",
    "--reuid",
    NOBODY,
    "--regid",
    NOBODY,
    "--clear-groups",
];

/// Changes how many processes and threads that user may have, as a process of its feels it.
fn limit_processes(pid: u32, limit: u32) {
    let (first, rest) = AS_NOBODY.split_first().unwrap();
    let status = Command::new(first)
        .args(rest)
        .args(["prlimit", "--pid", &pid.to_string()])
        // The soft limit, which can be raised again.
        .arg(format!("--nproc={limit}:"))
        .status()
        .unwrap();
    assert!(status.success());
}

fn give_to_nobody(folder: &Path) {
    let owner = format!("{NOBODY}:{NOBODY}");
    let status = Command::new("chown")
        .args(["-R", &owner])
        .arg(folder)
        .status()
        .unwrap();
    assert!(status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_on_processes_ends_no_agent_and_heals_when_it_is_lifted() {
    let by = AS_NOBODY;
    let useful = [&by[..], &["prlimit", "--nproc=500:", "/bin/true"]].concat();
    if !can("a limit on processes", &useful) {
        return;
    }
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    mark_starts(&folder);
    write(&folder, "uptime.toml", &builtin("sys.uptime"));
    // A program and a folder that this user reaches.
    let program = folder.join("agent");
    std::fs::copy(Binaries::shipped().gateway(), &program).unwrap();
    give_to_nobody(&folder);
    for part in folder
        .ancestors()
        .filter(|part| part.starts_with(system.path()))
    {
        std::fs::set_permissions(part, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    system.start_backend(Start::default()).await;
    // A thread that waits for work stays for ten seconds: whoever reads more often needs no new one.
    let every = Duration::from_secs(11);
    let mut gateway = start_that_reads(&system, &folder, &by, &program, every);
    system.online("gw-1").await;
    assert_eq!(
        outcome(&system, "sys.uptime", "before").await["state"],
        "succeeded"
    );

    limit_processes(gateway.pid(), 1);
    let said = condition(&folder, "collector.disks", true).await.unwrap();
    assert!(said["fix"].as_str().unwrap().contains("limit"), "{said}");
    let refused = outcome(&system, "sys.uptime", "limited").await;
    assert_ne!(refused["state"], "succeeded", "{refused}");
    // A lost connection is made again all the same.
    system.kill_backend();
    system.start_backend(Start::default()).await;
    system.online("gw-1").await;
    assert!(gateway.ended().is_none(), "{}", gateway.log());

    limit_processes(gateway.pid(), 500);
    condition(&folder, "collector.disks", false).await;
    assert_eq!(
        outcome(&system, "sys.uptime", "after").await["state"],
        "succeeded"
    );
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
    assert!(!gateway.log().contains("panicked"), "{}", gateway.log());
}

/// The only child of a process.
fn child_of(pid: u32) -> Option<Pid> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    Pid::from_raw(children.split_whitespace().next()?.parse().ok()?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn process_1_reaps_whoever_is_left_and_passes_signals_on() {
    let by = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    if !can("process 1", &[&by[..], &["/bin/true"]].concat()) {
        return;
    }
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    mark_starts(&folder);
    let mark = folder.join("orphan");
    let orphan = format!(
        "setsid sh -c 'sleep 0.2; echo x > \"{0}.new\"; mv \"{0}.new\" \"{0}\"' </dev/null >/dev/null 2>&1 &",
        mark.display()
    );
    write(&folder, "orphan.toml", &script("test.orphan", &orphan, ""));
    let dead = "grep -l \"^State:.Z\" /proc/[0-9]*/status; true";
    write(&folder, "dead.toml", &script("test.dead", dead, ""));
    system.start_backend(Start::default()).await;
    let mut gateway = start_by(&system, &folder, &by, &Binaries::shipped().gateway());
    system.online("gw-1").await;
    let ran = outcome(&system, "test.orphan", "1").await;
    assert_eq!(ran["state"], "succeeded", "{ran}");
    eventually("the orphan has ended", PATIENCE, async || {
        mark.exists().then_some(())
    })
    .await;
    let mut looks = 0;
    eventually("no zombie is left", PATIENCE, async || {
        looks += 1;
        let seen = outcome(&system, "test.dead", &format!("look-{looks}")).await;
        assert_eq!(seen["state"], "succeeded", "{seen}");
        seen["outcome"]["stdout"]["head"]["text"]
            .as_str()
            .is_some_and(|said| said.trim().is_empty())
            .then_some(())
    })
    .await;
    let first = child_of(gateway.pid()).unwrap();
    kill_process(first, Signal::TERM).unwrap();
    let status = gateway.wait(Duration::from_secs(30)).await;
    assert!(status.success(), "{status}: {}", gateway.log());
    assert!(gateway.log().contains("stopped"), "{}", gateway.log());
}

fn bound_sockets(folder: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/net/unix").unwrap();
    table
        .lines()
        .filter_map(|line| line.split_whitespace().nth(7))
        .map(PathBuf::from)
        .filter(|path| path.starts_with(folder))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_is_bound_where_it_stands_and_made_again_when_a_cleaner_took_it() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    system.start_backend(Start::default()).await;
    let mut gateway = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;
    let socket = folder.join("state/api.sock");
    // What a cleaner asks: is that path bound?
    let bound = bound_sockets(&folder);
    assert!(
        !bound.is_empty() && bound.iter().all(|path| *path == socket),
        "{bound:?}"
    );
    std::fs::remove_file(&socket).unwrap();
    let said = condition(&folder, "socket", true).await.unwrap();
    assert!(said["cause"].to_string().contains("api.sock"), "{said}");
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    condition(&folder, "socket", false).await;
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
}

/// Mounts that a careless reader of the table loses, inside a namespace of their own; then a program.
const MOUNTS: &str = "\
set -e
cd \"$1\"
odd=$(printf 'gr\\374n\\ttab')
mkdir -p \"$odd\" sysvol processed one two
mount -t tmpfs -o size=8m tmpfs \"$odd\"
mount -t tmpfs -o size=8m tmpfs sysvol
mount -t tmpfs -o size=8m tmpfs processed
mkdir sysvol/part
head -c 2097152 /dev/zero > sysvol/part/data
mount --bind sysvol/part one
mount --bind sysvol/part two
mount -t proc proc processed
shift
exec \"$@\"";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disks_are_listed_once_each_whatever_their_names_and_counted_as_df_counts() {
    let system = Deployment::new(Binaries::shipped());
    let folder = system.path().join("mounts");
    std::fs::create_dir(&folder).unwrap();
    let by = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        MOUNTS,
        "sh",
        text(&folder),
    ];
    if !can("mounts of every kind", &[&by[..], &["/bin/true"]].concat()) {
        return;
    }
    let said = |command: &[&str]| {
        let output = Command::new(by[0])
            .args(&by[1..])
            .args(command)
            .env("LC_ALL", "C")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let agent = Binaries::shipped().gateway();
    let table = said(&[text(&agent), "builtin", "sys.disks"]);
    let row = |end: &str| {
        let rows: Vec<&str> = table.lines().filter(|line| line.contains(end)).collect();
        assert_eq!(rows.len(), 1, "{end}: {table}");
        rows[0].to_owned()
    };
    row(r"mounts/gr\xfcn\x09tab");
    let sysvol = row("mounts/sysvol ");
    assert!(
        sysvol.contains("8.0 MiB") && sysvol.contains("2.0 MiB"),
        "{table}"
    );
    assert!(
        !table.contains("mounts/one") && !table.contains("mounts/two"),
        "{table}"
    );
    assert!(!table.contains("mounts/processed"), "{table}");
    let note = table.lines().find(|line| line.starts_with("not shown: "));
    assert!(
        note.is_some_and(|note| note.contains("of a device that is listed")),
        "{table}"
    );
    // Where it is mounted in the whole, df is of the same mind, to the percent.
    for line in said(&["df", "-P", "/", text(&folder.join("sysvol"))])
        .lines()
        .skip(1)
    {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (percent, mount) = (words[4], words[5]);
        let ours = table
            .lines()
            .find(|row| row.starts_with(&format!("{mount} ")));
        let ours = ours.and_then(|row| row.split_whitespace().last()).unwrap();
        let number = |text: &str| text.trim_end_matches('%').parse::<i32>().unwrap();
        assert!(
            (number(ours) - number(percent)).abs() <= 1,
            "{line}: {table}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interfaces_are_those_of_the_agent_s_own_network_whatever_sys_shows() {
    let system = Deployment::new(Binaries::shipped());
    // The host's /sys stays mounted, and shows the host's interfaces.
    let by = ["unshare", "--net"];
    if !can("a network of its own", &[&by[..], &["/bin/true"]].concat()) {
        return;
    }
    let said = |command: &[&str]| {
        let output = Command::new(by[0])
            .args(&by[1..])
            .args(command)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let kernel = said(&["cat", "/proc/net/dev"]);
    let mut wanted: Vec<&str> = kernel
        .lines()
        .filter_map(|line| Some(line.split_once(':')?.0.trim()))
        .collect();
    let gateway = system.binaries().gateway();
    let table = said(&[text(&gateway), "builtin", "net.interfaces"]);
    let rows: Vec<Vec<&str>> = table
        .lines()
        .skip(1)
        .map(|row| row.split_whitespace().collect())
        .collect();
    let mut listed: Vec<&str> = rows.iter().map(|row| row[0]).collect();
    wanted.sort_unstable();
    listed.sort_unstable();
    assert_eq!(listed, wanted, "{table}");
    let lo = rows.iter().find(|row| row[0] == "lo").unwrap();
    assert_eq!(lo[4..8], ["0", "B", "0", "B"], "{table}");
}
