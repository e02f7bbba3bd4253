//! A file system that takes requests and answers none, and a program that runs beside it: `hung-mount FOLDER PROGRAM ARGUMENT…`.
//!
//! Run in a mount namespace of its own, so that nobody else meets it. It stays until the program has ended.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::Context as _;
use rustix::mount::{MountFlags, mount};
use rustix::process::{Signal, set_parent_process_death_signal};

const DEVICE: &str = "/dev/fuse";
/// As the first argument: be the server, with the device as standard input.
const SERVE: &str = "--serve";
/// The kernel's first request, which has to be answered for others to be sent.
const INIT: u32 = 26;
/// The bytes of what heads a request, and an answer.
const HEAD: usize = 40;
const ANSWER_HEAD: usize = 16;
/// The bytes that follow in the answer to the first request.
const INIT_ANSWER: usize = 64;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let first = arguments.next().context("a folder is missing")?;
    if first == SERVE {
        return serve();
    }
    let program = arguments.next().context("a program is missing")?;
    let device = File::options()
        .read(true)
        .write(true)
        .open(DEVICE)
        .with_context(|| format!("failed to open {DEVICE}"))?;
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0",
        device.as_raw_fd()
    );
    let options = std::ffi::CString::new(options)?;
    mount(
        "hung",
        first.as_str(),
        "fuse",
        MountFlags::empty(),
        Some(&*options),
    )
    .context("failed to mount")?;
    Command::new(std::env::current_exe()?)
        .arg(SERVE)
        .stdin(Stdio::from(OwnedFd::from(device)))
        .stdout(Stdio::null())
        .spawn()
        .context("failed to start the server")?;
    Err(Command::new(program).args(arguments).exec().into())
}

/// Answers the first request and takes in all others.
fn serve() -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let mut device = File::from(rustix::io::dup(rustix::stdio::stdin())?);
    let mut request = vec![0; 256 * 1024];
    loop {
        let length = device.read(&mut request)?;
        anyhow::ensure!(length >= HEAD, "a request is cut short");
        let word = |place: usize| -> u32 {
            let bytes = request.get(place..place + 4).unwrap_or_default();
            u32::from_ne_bytes(bytes.try_into().unwrap_or_default())
        };
        if word(4) != INIT {
            continue;
        }
        let mut answer = Vec::new();
        answer.extend(u32::try_from(ANSWER_HEAD + INIT_ANSWER)?.to_ne_bytes());
        answer.extend(0_i32.to_ne_bytes());
        answer.extend(request.get(8..16).unwrap_or_default());
        // The version is the kernel's own; no features, and writes of a page.
        answer.extend(word(HEAD).to_ne_bytes());
        answer.extend(word(HEAD + 4).to_ne_bytes());
        answer.resize(ANSWER_HEAD + INIT_ANSWER, 0);
        let write_max = ANSWER_HEAD + 20;
        answer[write_max..write_max + 4].copy_from_slice(&4096_u32.to_ne_bytes());
        device.write_all(&answer)?;
    }
}
