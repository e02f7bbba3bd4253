//! Arguments in, exit code out.

fn main() -> std::process::ExitCode {
    if let Some(code) = viworks_runtime::lifecycle::init::run_if_first() {
        return code;
    }
    // An argument that is no text is an unknown one, not a reason to panic.
    let arguments = std::env::args_os().map(|argument| argument.to_string_lossy().into_owned());
    viworks_gateway_agent::cli::main(&arguments.collect::<Vec<_>>())
}
