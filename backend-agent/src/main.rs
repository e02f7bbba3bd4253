//! Arguments in, exit code out.

fn main() -> std::process::ExitCode {
    if let Some(code) = viworks_runtime::lifecycle::init::run_if_first() {
        return code;
    }
    viworks_backend_agent::cli::main()
}
