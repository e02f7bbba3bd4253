//! What nginx itself says of a configuration, and what to do about it.

use std::borrow::Cow;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use viworks_common::time::Monotonic;
use viworks_runtime::clock::{Clock as _, SystemClock};
use viworks_runtime::config::{Place, Problem};

use super::whole::Findings;

/// Of a user who is not root, the path does not lead to the second one.
pub(super) const PROGRAMS: [&str; 2] = ["nginx", "/usr/sbin/nginx"];

/// How Debian has nginx with what passes TLS through.
const INSTALL: &str = "apt-get install nginx-light libnginx-mod-stream";

/// What it says of a file before it looks at what is around it.
const UNDERSTOOD: &str = " syntax is ok";

/// Behind the help, where nobody can tell what else is in the file.
const REST: &str = "; where it leads is looked at once nginx can read it";

/// Directives of the module that passes TLS through; they say that it is not there.
const OF_STREAM: [&str; 3] = ["stream", "ssl_preread", "preread_timeout"];

/// How long it may take: it asks DNS for each name in a file, one after another.
const ANSWER_TIME: Duration = Duration::from_secs(60);

/// How long one that was ended may take to be gone: what a disk holds up is not waited for.
const GONE_TIME: Duration = Duration::from_secs(5);

/// How often is looked whether one has ended that says nothing any more.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Bytes of the most that is heard of it.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// Asks the first of these programs that is there.
pub(super) fn ask(programs: &[&str], file: &Path, findings: &mut Findings) {
    ask_for(ANSWER_TIME, programs, file, findings);
}

fn ask_for(limit: Duration, programs: &[&str], file: &Path, findings: &mut Findings) {
    let mut asked = programs
        .iter()
        .filter_map(|program| Some((*program, hear(program, file, limit).ok()?)));
    let Some((program, output)) = asked.next() else {
        let line = format!(
            "not looked at: whether nginx can read it, which is not here to be asked ({INSTALL})"
        );
        findings.unseen.push(line);
        return;
    };
    let Some(output) = output else {
        findings.problems.push(no_answer(program, file, limit));
        return;
    };
    if !said(&output).contains("nginx") {
        findings.problems.push(no_nginx(program, &output, file));
        return;
    }
    if let Some(refusal) = judge(&output, file) {
        findings.refusal = Some(refusal);
        return;
    }
    let right = "nginx can read it (nginx -t)".to_owned();
    findings.right.push(right);
}

/// That nginx does not take a file, or would not.
#[derive(Debug)]
pub(super) struct Refusal {
    /// Why, and what to do about it.
    pub(super) problem: Problem,
    /// Whether it could read all of it all the same: what is wrong is around the file.
    pub(super) is_understood: bool,
}

fn said(output: &Output) -> Cow<'_, str> {
    String::from_utf8_lossy(&output.stderr)
}

/// Starts a program and hears it out. `None` when it did not end in time: it is ended then.
fn hear(program: &str, file: &Path, limit: Duration) -> io::Result<Option<Output>> {
    let mut command = Command::new(program);
    command.arg("-t").arg("-c").arg(file);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.stderr(Stdio::piped()).spawn()?;
    let end = SystemClock.now().saturating_add(limit);
    let mut stderr = Vec::new();
    let heard = child
        .stderr
        .take()
        .map_or(Ok(true), |pipe| hear_out(pipe, &mut stderr, end));
    // One that has nothing more to say may go on all the same.
    let status = match heard {
        Ok(true) => ended(&mut child, end),
        Ok(false) => Ok(None),
        Err(error) => Err(error),
    };
    if !matches!(status, Ok(Some(_))) {
        // It may have ended meanwhile.
        drop(child.kill());
        let gone = SystemClock.now().saturating_add(GONE_TIME);
        drop(ended(&mut child, gone));
    }
    Ok(status?.map(|status| Output {
        status,
        stdout: Vec::new(),
        stderr,
    }))
}

/// How a program ended, if it did until then.
fn ended(child: &mut Child, end: Monotonic) -> io::Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        let left = end.saturating_since(SystemClock.now());
        if left.is_zero() {
            return Ok(None);
        }
        let wait = Timespec::try_from(left.min(LOOK_AGAIN)).unwrap_or_default();
        match poll(&mut [], Some(&wait)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether what is said there came to its end in time.
fn hear_out(mut pipe: ChildStderr, said: &mut Vec<u8>, end: Monotonic) -> io::Result<bool> {
    let mut bytes = [0; 4096];
    loop {
        let left = end.saturating_since(SystemClock.now());
        let wait = Timespec::try_from(left).unwrap_or_default();
        match poll(&mut [PollFd::new(&pipe, PollFlags::IN)], Some(&wait)) {
            Ok(0) => return Ok(false),
            // One that says something without end has no end in time either.
            Ok(_ready) if left.is_zero() => return Ok(false),
            Ok(_ready) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let count = pipe.read(&mut bytes)?;
        if count == 0 {
            return Ok(true);
        }
        if said.len() < ANSWER_BYTES_MAX {
            said.extend_from_slice(bytes.get(..count).unwrap_or_default());
        }
    }
}

fn no_answer(program: &str, file: &Path, limit: Duration) -> Problem {
    let message = format!(
        "nginx -t did not come to an end within {} s and was ended",
        limit.as_secs()
    );
    let help = format!(
        "see what it waits for, such as a pipe that is included, or DNS for a name in the file: {program} -t -c {}",
        file.display()
    );
    Problem::of_file(file, message, help)
}

fn no_nginx(program: &str, output: &Output, file: &Path) -> Problem {
    let said = said(output);
    let first = said.lines().next().unwrap_or("nothing");
    let message = format!("what is started as {program} is no nginx: it says {first}");
    let help = format!("{INSTALL}, and see which program PATH leads to: command -v nginx");
    Problem::of_file(file, message, help)
}

fn judge(output: &Output, file: &Path) -> Option<Refusal> {
    if output.status.success() {
        return None;
    }
    let said = said(output);
    let is_understood = said.contains(UNDERSTOOD);
    let Cause { words, place } = Cause::of(&said);
    let mut help = help(&words, place.as_ref(), file);
    if !is_understood {
        help.push_str(REST);
    }
    let place = place.map_or_else(
        || Place::File(file.to_owned()),
        |(path, line)| Place::Line {
            path,
            line,
            column: 1,
        },
    );
    let problem = Problem {
        place,
        message: format!("nginx refuses it: {words}"),
        help,
    };
    Some(Refusal {
        problem,
        is_understood,
    })
}

/// Why it refuses, and the file and line that it names.
#[derive(Debug, PartialEq, Eq)]
struct Cause {
    words: String,
    place: Option<(PathBuf, usize)>,
}

impl Cause {
    fn of(said: &str) -> Self {
        let line = said.lines().find(|line| line.contains("[emerg] "));
        let line = line.unwrap_or_else(|| said.trim());
        let (_when, words) = line.split_once("[emerg] ").unwrap_or(("", line));
        // Its process comes first, where it writes as it does into a log.
        let is_process = |text: &str| text.bytes().all(|it| it.is_ascii_digit() || it == b'#');
        let words = match words.split_once(": ") {
            Some((process, rest)) if is_process(process) => rest,
            Some(_) | None => words,
        };
        let placed = words.rsplit_once(" in ").and_then(|(before, place)| {
            let (path, line) = place.rsplit_once(':')?;
            Some((before, (PathBuf::from(path), line.parse().ok()?)))
        });
        let (words, place) = placed.map_or((words, None), |(words, place)| (words, Some(place)));
        Self {
            words: words.to_owned(),
            place,
        }
    }
}

/// What to do about a cause, in nginx's words, which have stayed the same for many years.
fn help(words: &str, place: Option<&(PathBuf, usize)>, file: &Path) -> String {
    let says = |part: &str| words.contains(part);
    let quoted = words.split('"').nth(1).unwrap_or_default();
    let known = if says("Permission denied") {
        "ask as root, as whom nginx starts"
    } else if words.starts_with("dlopen()") && says("No such file") {
        return match package(quoted) {
            Some(package) => format!("apt-get install {package}, or remove this load_module"),
            None => {
                "install the package that has this module, or remove this load_module".to_owned()
            }
        };
    } else if words.starts_with("dlopen()") || words.starts_with("module \"") && !says("already") {
        "that module is for another nginx: install both from one source, and of one version (nginx -v)"
    } else if says("is already loaded") {
        "remove one of both load_module lines, or of the files that include them"
    } else if says("unknown directive") && OF_STREAM.contains(&quoted) {
        "the module that passes TLS through is not loaded: apt-get install libnginx-mod-stream, and write \
         include /etc/nginx/modules-enabled/*.conf; above the first block"
    } else if says("unknown directive") {
        "correct the word, or load the module that has it: nginx -V lists those that are built in"
    } else if words.starts_with("open()") && says("(2:") {
        return match place {
            Some(_) => format!("write {quoted}, or remove this include"),
            None => format!("make the folder of {quoted}"),
        };
    } else if says("key values mismatch") {
        "name the key for which this certificate was made in ssl_certificate_key"
    } else if says("cannot load certificate") || says("no \"ssl_certificate\"") {
        "have a certificate and its key made, and name their files in ssl_certificate and ssl_certificate_key"
    } else if says("Address already in use") {
        "another program listens there: ss -ltnp names it; stop it, or choose another port"
    } else if says("Cannot assign requested address") {
        "that is no address of this machine: ip address lists them; or leave the address out, and write the port alone"
    } else if says("a duplicate listen") || says("duplicate default server") {
        "two servers have this listen, or one has it twice: leave one"
    } else if says("host not found") {
        "write its address, or have the name in DNS or /etc/hosts before nginx starts"
    } else if says("no \"events\" section") {
        "this is a part of a configuration: check the file that includes it, such as /etc/nginx/nginx.conf"
    } else if words.starts_with("getpwnam") || words.starts_with("getgrnam") {
        "name a user of this machine, such as the one of nginx's package: user www-data;"
    } else if says("is not allowed here") {
        "move it to the block where it belongs: servers for gateways stand in stream, those for operators in http"
    } else if says("unexpected ") || says("is not terminated") || says("invalid ") {
        "correct this line, or the end of the one before it; what is no configuration of nginx is refused so as well"
    } else {
        return format!("nginx -t -c {} says it at length", file.display());
    };
    known.to_owned()
}

/// The package of Debian's that has a module.
fn package(module: &str) -> Option<String> {
    let name = Path::new(module).file_stem()?.to_str()?;
    let name = name.strip_prefix("ngx_")?.strip_suffix("_module")?;
    Some(format!("libnginx-mod-{}", name.replace('_', "-")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    const FILE: &str = "/etc/nginx/nginx.conf";

    fn refusal(said: &str) -> Refusal {
        let output = Output {
            status: ExitStatus::from_raw(256),
            stdout: Vec::new(),
            stderr: said.as_bytes().to_vec(),
        };
        judge(&output, Path::new(FILE)).unwrap()
    }

    #[test]
    fn what_is_around_a_file_is_no_reason_to_leave_it_unread() {
        let emerg = "nginx: [emerg] open() \"/run/nginx.pid\" failed (13: Permission denied)";
        let around = refusal(&format!(
            "nginx: the configuration file {FILE} syntax is ok\n{emerg}"
        ));
        assert!(around.is_understood && !around.problem.help.contains("looked at"));
        let within = refusal("nginx: [emerg] unknown directive \"proxy_pas\" in FILE:7");
        assert!(!within.is_understood && within.problem.help.contains("looked at once nginx"));
    }

    /// What nginx 1.22 wrote, with the place and the help.
    #[test]
    fn each_cause_has_its_place_and_its_own_help() {
        let line = "/etc/nginx/nginx.conf:7:1";
        let mut helps = Vec::new();
        for (said, place, help) in [
            (
                "dlopen() \"/usr/share/nginx/modules/ngx_stream_module.so\" failed (/usr/share/nginx/modules/\
                 ngx_stream_module.so: cannot open shared object file: No such file or directory) in FILE:7",
                line,
                "apt-get install libnginx-mod-stream, or remove",
            ),
            (
                "module \"/m/ngx_stream_module.so\" version 1018000 instead of 1022001 in FILE:7",
                line,
                "for another nginx",
            ),
            (
                "module \"ngx_stream_module\" is already loaded in FILE:7",
                line,
                "remove one of both",
            ),
            (
                "unknown directive \"stream\" in FILE:7",
                line,
                "modules-enabled",
            ),
            (
                "unknown directive \"no_such\" in FILE:7",
                line,
                "correct the word",
            ),
            (
                "open() \"/etc/nginx/missing.conf\" failed (2: No such file or directory) in FILE:7",
                line,
                "write /etc/nginx/missing.conf, or remove this include",
            ),
            (
                "open() \"/nonexistent/access.log\" failed (2: No such file or directory)",
                FILE,
                "make the folder of /nonexistent/access.log",
            ),
            (
                "open() \"/run/nginx.pid\" failed (13: Permission denied)",
                FILE,
                "ask as root",
            ),
            (
                "cannot load certificate \"/x/api.crt\": BIO_new_file() failed (SSL: error:80000002:system library::No \
                 such file or directory:calling fopen(/x/api.crt, r))",
                FILE,
                "have a certificate and its key made",
            ),
            (
                "SSL_CTX_use_PrivateKey(\"/x/api.key\") failed (SSL: error:05800074:x509 certificate routines::key values \
                 mismatch)",
                FILE,
                "for which this certificate was made",
            ),
            (
                "bind() to 0.0.0.0:443 failed (98: Address already in use)",
                FILE,
                "ss -ltnp",
            ),
            (
                "bind() to 10.9.9.9:443 failed (99: Cannot assign requested address)",
                FILE,
                "no address of this machine",
            ),
            (
                "a duplicate listen 127.0.0.1:8443 in FILE:7",
                line,
                "leave one",
            ),
            (
                "host not found in upstream \"b.example:8081\" in FILE:7",
                line,
                "in DNS or /etc/hosts",
            ),
            (
                "no \"events\" section in configuration",
                FILE,
                "a part of a configuration",
            ),
            ("getpwnam(\"www\") failed in FILE:7", line, "user www-data;"),
            (
                "\"server\" directive is not allowed here in FILE:7",
                line,
                "move it to the block",
            ),
            (
                "unexpected end of file, expecting \";\" or \"}\" in FILE:7",
                line,
                "correct this line",
            ),
            ("something new in FILE:7", line, "says it at length"),
        ] {
            let said = said.replace("FILE", FILE);
            for before in [
                "nginx: [emerg] ",
                "2026/11/28 08:40:35 [emerg] 20086#20086: ",
            ] {
                let end = format!("nginx: configuration file {FILE} test failed");
                let found = refusal(&format!(
                    "nginx: [alert] could not open a log\n{before}{said}\n{end}"
                ));
                let found = found.problem;
                assert_eq!(found.place.to_string(), place, "{said}");
                assert!(found.help.contains(help), "{said}: {}", found.help);
                let words = said.trim_end_matches(&format!(" in {FILE}:7"));
                assert_eq!(found.message, format!("nginx refuses it: {words}"));
                helps.push(found.help);
            }
        }
        helps.sort();
        helps.dedup();
        assert_eq!(helps.len(), 19, "no two causes have one help");
    }

    #[test]
    fn one_that_does_not_answer_is_ended_and_told_of() {
        // What takes -t and -c as nginx does, and does not go on, also once it has nothing more to say.
        for stands_still in ["kill -STOP $$", "exec 2>&-; kill -STOP $$"] {
            let mut findings = Findings::default();
            let limit = Duration::from_millis(100);
            ask_for(limit, &["bash"], Path::new(stands_still), &mut findings);
            let [problem] = &*findings.problems else {
                panic!("{findings:?}");
            };
            assert!(problem.message.contains("did not come to an end"));
            assert!(problem.help.contains("bash -t -c "), "{problem:?}");
            assert!(findings.right.is_empty() && findings.refusal.is_none());
        }
    }

    #[test]
    fn another_program_of_this_name_is_no_nginx() {
        for program in ["false", "true"] {
            let mut findings = Findings::default();
            ask(&[program], Path::new(FILE), &mut findings);
            let [problem] = &*findings.problems else {
                panic!("{findings:?}");
            };
            assert!(problem.message.contains("is no nginx: it says nothing"));
            assert!(problem.help.contains("command -v nginx"));
        }
        let mut findings = Findings::default();
        ask(&["/nonexistent/nginx"], Path::new(FILE), &mut findings);
        assert!(
            findings.problems.is_empty()
                && findings.unseen[0].contains("apt-get install nginx-light")
        );
    }
}
