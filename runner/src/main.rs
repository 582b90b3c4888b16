//! The `cllm` binary.
fn main() {}
