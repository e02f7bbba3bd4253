//! `gateway.info`: which agent runs where.

use std::io::Write;

use sysinfo::System;

use super::table::printable;
use super::{BuiltinError, system};

pub(super) fn info(output: &mut dyn Write) -> Result<(), BuiltinError> {
    let unknown = |_error| "unknown".to_owned();
    let host = System::host_name().unwrap_or_else(unknown);
    let os = System::long_os_version().unwrap_or_else(unknown);
    let kernel = System::kernel_version().unwrap_or_else(unknown);
    writeln!(output, "agent: viworks-gateway-agent")?;
    writeln!(output, "agent_version: {}", env!("CARGO_PKG_VERSION"))?;
    writeln!(output, "host: {}", printable(&host))?;
    writeln!(output, "operating_system: {}", printable(&os))?;
    writeln!(output, "kernel: {}", printable(&kernel))?;
    writeln!(output, "architecture: {}", System::cpu_arch())?;
    let processors = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    writeln!(output, "processors: {processors}")?;
    system::uptime(output)
}
