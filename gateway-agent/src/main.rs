//! Arguments in, exit code out.

fn main() -> std::process::ExitCode {
    viworks_gateway_agent::cli::main(std::env::args().collect())
}
