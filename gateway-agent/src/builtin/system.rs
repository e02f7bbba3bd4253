//! `sys.*`: what the host is made of and how it fares.

use std::io::Write;
use std::time::Duration;

use rustix::system::uname;
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System};

use super::table::{self, Align, printable};
use super::{BuiltinError, failed};
use crate::host;
use crate::host::disks::{Answer, Disks, Prober};
use crate::host::mounts::{self, LeftOut};

pub(super) fn uptime(output: &mut dyn Write) -> Result<(), BuiltinError> {
    let seconds = System::uptime().map_err(failed("uptime"))?;
    let load = System::load_average().map_err(failed("load"))?;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    writeln!(output, "uptime: {days} d {hours} h {minutes} min")?;
    writeln!(output, "uptime_seconds: {seconds}")?;
    writeln!(
        output,
        "load: {:.2} {:.2} {:.2}",
        load.one, load.five, load.fifteen
    )?;
    Ok(())
}

pub(super) fn kernel(output: &mut dyn Write) -> Result<(), BuiltinError> {
    let names = uname();
    for (key, value) in [
        ("system", names.sysname()),
        ("release", names.release()),
        ("version", names.version()),
        ("machine", names.machine()),
    ] {
        writeln!(output, "{key}: {}", printable(&value.to_string_lossy()))?;
    }
    Ok(())
}

pub(super) fn disks(output: &mut dyn Write, prober: &Prober) -> Result<(), BuiltinError> {
    let unreadable = |error| BuiltinError::Failed(format!("the mounts cannot be read: {error}"));
    let chosen = mounts::read(usize::MAX).map_err(unreadable)?;
    let answers = Disks::new(prober.clone())
        .ask(&chosen)
        .map_err(|error| BuiltinError::Failed(format!("the disks cannot be asked: {error}")))?;
    let rows: Vec<Vec<String>> = answers
        .into_iter()
        .filter_map(|(mount, answer)| {
            let none = || "-".to_owned();
            let [size, used, free, share] = match answer {
                Answer::Usage(usage) => [
                    table::bytes(usage.total),
                    table::bytes(usage.used),
                    table::bytes(usage.available),
                    usage.percent().map_or_else(none, |p| format!("{p}%")),
                ],
                Answer::Silent => ["no answer".to_owned(), none(), none(), none()],
                Answer::Refused(reason) => [printable(&reason), none(), none(), none()],
                // As df does.
                Answer::Nothing => return None,
            };
            let point = host::printable(mount.point.as_os_str());
            Some(vec![point, printable(&mount.kind), size, used, free, share])
        })
        .collect();
    let columns = [
        ("MOUNT", Align::Left),
        ("TYPE", Align::Left),
        ("SIZE", Align::Right),
        ("USED", Align::Right),
        ("FREE", Align::Right),
        ("USE", Align::Right),
    ];
    table::write(output, &columns, &rows)?;
    if let Some(note) = not_shown(&chosen.left_out) {
        writeln!(output, "{note}")?;
    }
    Ok(())
}

/// What the table leaves out, in one line.
fn not_shown(left_out: &LeftOut) -> Option<String> {
    let reasons = [
        (left_out.same_device, "of a device that is listed"),
        (left_out.covered, "covered by another mount"),
        (left_out.images, "read-only images"),
        (left_out.unreadable, "not understood"),
        (left_out.beyond, "more"),
    ];
    let said: Vec<String> = reasons
        .iter()
        .filter(|(count, _reason)| *count > 0)
        .map(|(count, reason)| format!("{count} {reason}"))
        .collect();
    (!said.is_empty()).then(|| format!("not shown: mounts: {}", said.join(", ")))
}

pub(super) fn memory(output: &mut dyn Write) -> Result<(), BuiltinError> {
    let mut system = System::new().map_err(failed("memory"))?;
    system.refresh_memory();
    let (total, available) = (system.total_memory(), system.available_memory());
    writeln!(
        output,
        "memory: {} of {} in use",
        table::bytes(total.saturating_sub(available)),
        table::bytes(total)
    )?;
    for (key, value) in [
        ("total_bytes", total),
        ("available_bytes", available),
        ("used_bytes", total.saturating_sub(available)),
        ("swap_total_bytes", system.total_swap()),
        ("swap_used_bytes", system.used_swap()),
    ] {
        writeln!(output, "{key}: {value}")?;
    }
    Ok(())
}

pub(super) fn processes(output: &mut dyn Write, count: usize) -> Result<(), BuiltinError> {
    let mut system = System::new().map_err(failed("processes"))?;
    let what = ProcessRefreshKind::nothing().with_memory();
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, what);
    let mut processes: Vec<_> = system
        .processes()
        .values()
        .filter(|process| process.thread_kind().is_none())
        .collect();
    processes.sort_by_key(|process| (std::cmp::Reverse(process.memory()), process.pid()));
    let rows: Vec<Vec<String>> = processes
        .iter()
        .take(count)
        .map(|process| {
            vec![
                process.pid().to_string(),
                table::bytes(process.memory()),
                duration(Duration::from_secs(process.run_time())),
                host::printable(process.name()),
            ]
        })
        .collect();
    let columns = [
        ("PID", Align::Right),
        ("MEMORY", Align::Right),
        ("RUNS FOR", Align::Right),
        ("NAME", Align::Left),
    ];
    Ok(table::write(output, &columns, &rows)?)
}

fn duration(span: Duration) -> String {
    let seconds = span.as_secs();
    match (seconds / 86_400, seconds / 3_600, seconds / 60) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, _) => format!("{hours} h"),
        (days, _, _) => format!("{days} d"),
    }
}
