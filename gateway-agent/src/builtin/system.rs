//! `sys.*`: what the host is made of and how it fares.

use std::io::Write;
use std::time::Duration;

use rustix::system::uname;
use sysinfo::{Disks, ProcessRefreshKind, ProcessesToUpdate, System};

use super::table::{self, Align, printable};
use super::{BuiltinError, failed};

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

pub(super) fn disks(output: &mut dyn Write) -> Result<(), BuiltinError> {
    let disks = Disks::new_with_refreshed_list().map_err(failed("disks"))?;
    let mut rows: Vec<Vec<String>> = disks
        .iter()
        .map(|disk| {
            let (total, free) = (disk.total_space(), disk.available_space());
            vec![
                printable(&disk.mount_point().to_string_lossy()),
                printable(&disk.file_system().to_string_lossy()),
                table::bytes(total),
                table::bytes(total.saturating_sub(free)),
                table::bytes(free),
                percent(total.saturating_sub(free), total),
            ]
        })
        .collect();
    rows.sort();
    rows.dedup();
    let columns = [
        ("MOUNT", Align::Left),
        ("TYPE", Align::Left),
        ("SIZE", Align::Right),
        ("USED", Align::Right),
        ("FREE", Align::Right),
        ("USE", Align::Right),
    ];
    Ok(table::write(output, &columns, &rows)?)
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
                printable(&process.name().to_string_lossy()),
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

fn percent(part: u64, whole: u64) -> String {
    match (u128::from(part) * 100).checked_div(u128::from(whole)) {
        Some(percent) => format!("{percent}%"),
        None => "-".to_owned(),
    }
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
