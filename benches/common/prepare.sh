# Read by the scripts of benches/ that measure runs of `cllm train`: builds the program and makes the
# text of the reference workload, unless they are there. Sets `cllm`, `data` and `work` (a folder
# for what a script leaves), and lets Python find runs.py. CLLM names a binary to measure instead of
# building one, DATA another text's folder.

work=target/reference
data=${DATA:-$work/data}
cllm=${CLLM:-target/release/cllm}
mkdir -p "$work"
[ -n "${CLLM:-}" ] || cargo build --quiet --locked --release --package cllm
[ -f "$data/meta.json" ] || "$cllm" data reference --out "$data" > /dev/null
export PYTHONPATH=benches/common PYTHONDONTWRITEBYTECODE=1
