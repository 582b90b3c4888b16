# Read by scripts of tests/ that use the program: CLLM names one that is built already, or it is built and named here.

if [ -z "${CLLM:-}" ]; then
    cargo build --quiet --locked --release --package cllm
    CLLM=target/release/cllm
fi
