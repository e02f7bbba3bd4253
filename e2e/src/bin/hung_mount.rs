//! A file system that answers no requests, and a program that runs beside it: `hung-mount [--deaf] FOLDER PROGRAM
//! ARGUMENT…`.
//!
//! It takes requests in, and then the kernel lets nobody go who made one, not even to die; a deaf one does not come to
//! that. Run in a mount namespace of its own, so that nobody else meets it. It stays until the program is gone.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::Context as _;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{MountFlags, mount};
use rustix::process::{PidfdFlags, getppid, pidfd_open};

const DEVICE: &str = "/dev/fuse";
/// As the first argument: be the server, with the device as standard input.
const SERVE: &str = "--serve";
/// As the first argument, or the server's second: take no requests in.
const DEAF: &str = "--deaf";
/// How long it stays when nothing happens any more: a program that never ends must not leave it here for ever.
const LIFE: Timespec = Timespec {
    tv_sec: 300,
    tv_nsec: 0,
};
/// The kernel's first request, which has to be answered for others to be sent.
const INIT: u32 = 26;
/// The bytes of what heads a request, and an answer.
const HEAD: usize = 40;
const ANSWER_HEAD: usize = 16;
/// The bytes that follow in the answer to the first request.
const INIT_ANSWER: usize = 64;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut first = arguments.next().context("a folder is missing")?;
    if first == SERVE {
        return serve(arguments.next().is_some_and(|second| second == DEAF));
    }
    let deaf = first == DEAF;
    if deaf {
        first = arguments.next().context("a folder is missing")?;
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
        .args(deaf.then_some(DEAF))
        .stdin(Stdio::from(OwnedFd::from(device)))
        .stdout(Stdio::null())
        .spawn()
        .context("failed to start the server")?;
    Err(Command::new(program).args(arguments).exec().into())
}

/// Answers the first request and takes in all others, unless it is deaf, until whoever started it is gone for good.
fn serve(deaf: bool) -> anyhow::Result<()> {
    let served = getppid().context("nobody is served")?;
    // Readable only once every thread of it is gone.
    let served = pidfd_open(served, PidfdFlags::empty())?;
    let mut device = File::from(rustix::io::dup(rustix::stdio::stdin())?);
    let mut request = vec![0; 256 * 1024];
    let mut listening = true;
    loop {
        let mut ready = [
            PollFd::new(&served, PollFlags::IN),
            PollFd::new(&device, PollFlags::IN),
        ];
        let watched = if listening { 2 } else { 1 };
        let moved = poll(&mut ready[..watched], Some(&LIFE))?;
        if moved == 0 || !ready[0].revents().is_empty() {
            return Ok(());
        }
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
        listening = !deaf;
    }
}
