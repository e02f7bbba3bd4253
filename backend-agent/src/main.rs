//! Arguments in, exit code out.

fn main() -> std::process::ExitCode {
    viworks_backend_agent::cli::main()
}
