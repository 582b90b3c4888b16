//! The `cllm` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    cllm::cli::main(std::env::args_os())
}
