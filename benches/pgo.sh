#!/usr/bin/env bash
# Builds `cllm` with profile-guided optimisation: trains the profile on short runs of the tiny and
# the reference preset (f32 and bf16), builds again with it, and measures the gain over the plain
# release build, in turns, on those workloads with one thread. The last losses stand beside it.
#
# Usage: benches/pgo.sh [--quick | --build-only] [RUNS]     (7 runs each, some fifteen minutes)
#   --quick        5 runs each, of fewer steps
#   --build-only   measures nothing
#
# The program is target/pgo/build/TARGET/release/cllm. Needs Python 3, nothing but its own library,
# and `llvm-profdata` of the LLVM version of rustc (`rustc -vV`): LLVM_PROFDATA's, rustup's, the
# system's, or else, on Debian and its like, the distribution's package, unpacked below target/pgo.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$PWD/target/pgo
data=target/reference/data
runs=7 quick=0 measure=1
for arg in "$@"; do
    case $arg in
        --quick) quick=1 runs=5 ;;
        --build-only) measure=0 ;;
        *[!0-9]* | '' | 0) echo "benches/pgo.sh: $arg: use --quick, --build-only or a number of runs" >&2; exit 2 ;;
        *) runs=$arg ;;
    esac
done
host=$(rustc -vV | sed -n 's/^host: //p')
llvm=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
mkdir -p "$work"

profdata() {
    # Older versions cannot read the profiles, and tell their version in other ways or not at all.
    "$@" --version 2> /dev/null | grep -q "version $llvm\."
}

# Sets `tool`.
find_tool() {
    local candidate
    for candidate in ${LLVM_PROFDATA:+"$LLVM_PROFDATA"} \
        "$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata" \
        "llvm-profdata-$llvm" "/usr/lib/llvm-$llvm/bin/llvm-profdata" llvm-profdata; do
        tool=("$candidate")
        if profdata "${tool[@]}"; then return; fi
        if [ "$candidate" = "${LLVM_PROFDATA:-}" ]; then
            echo "benches/pgo.sh: LLVM_PROFDATA=$candidate is not llvm-profdata of LLVM $llvm" >&2
            exit 1
        fi
    done
    local unpacked=$work/llvm-$llvm
    if [ ! -d "$unpacked" ] && command -v apt-get > /dev/null && command -v dpkg-deb > /dev/null; then
        echo "unpacking llvm-profdata of the package llvm-$llvm into target/pgo" >&2
        rm -rf "$unpacked.part" && mkdir "$unpacked.part"
        if (cd "$unpacked.part" && apt-get --quiet=2 download "llvm-$llvm" "libllvm$llvm") > /dev/null 2>&1; then
            for package in "$unpacked.part"/*.deb; do dpkg-deb --extract "$package" "$unpacked.part"; done
            rm "$unpacked.part"/*.deb
            mv "$unpacked.part" "$unpacked"
        fi
    fi
    if [ -d "$unpacked" ]; then
        tool=(env "LD_LIBRARY_PATH=$(dirname "$(find "$unpacked" -name 'libLLVM*.so*' | head -n 1)")"
            "$unpacked/usr/lib/llvm-$llvm/bin/llvm-profdata")
        if profdata "${tool[@]}"; then return; fi
    fi
    cat >&2 <<TEXT
benches/pgo.sh: no llvm-profdata of LLVM $llvm, which this rustc has. Install it and run this again:
  with rustup:          rustup component add llvm-tools
  on Debian or Ubuntu:  apt-get install llvm-$llvm   (older releases: from https://apt.llvm.org)
  elsewhere:            LLVM $llvm, with LLVM_PROFDATA set to the path of its llvm-profdata
TEXT
    exit 1
}

# A target that is named keeps the flags from build scripts and macros.
build() {
    RUSTFLAGS="${RUSTFLAGS:-} $1" cargo build --quiet --locked --release --package cllm \
        --target "$host" --target-dir "$2"
}

find_tool
echo "building with counters, and training the profile" >&2
rm -rf "$work/raw"
build "-Cprofile-generate=$work/raw" "$work/counters"
counting=$work/counters/$host/release/cllm
[ -f "$data/meta.json" ] || "$counting" data reference --out "$data" > /dev/null
train() {
    rm -rf "$work/run"
    "$counting" train "$@" --eval-batches 2 --log-format json --out-dir "$work/run" > "$work/log" ||
        { cat "$work/log" >&2; exit 1; }
}
for threads in 1 2; do
    train --preset tiny --max-steps 60 --threads "$threads"
    for dtype in f32 bf16; do
        train --preset reference --data "$data" --dtype "$dtype" --max-steps 4 --threads "$threads"
    done
done
"${tool[@]}" merge --output "$work/cllm.profdata" "$work/raw"

echo "building with the profile" >&2
build "-Cprofile-use=$work/cllm.profdata" "$work/build"
guided=$work/build/$host/release/cllm
echo "${guided#"$PWD/"}"
[ "$measure" = 1 ] || exit 0
. benches/common/prepare.sh
exec python3 - "$cllm" "$guided" "$data" "$runs" "$quick" <<'PYTHON'
import sys
from statistics import median

from runs import train, turns

plain, guided, data = sys.argv[1:4]
runs, quick = int(sys.argv[4]), sys.argv[5] == "1"
reference = ["--preset", "reference", "--data", data]
# Name, flags, steps.
CASES = [
    ("reference, f32", [*reference, "--dtype", "f32"], 4 if quick else 9),
    ("reference, bf16", [*reference, "--dtype", "bf16"], 6 if quick else 13),
    ("tiny", ["--preset", "tiny"], 150 if quick else 400),
]

print(f"{'':<16}{'plain, tokens/s':>17}{'guided, tokens/s':>18}{'gain':>9}{'losses':>20}")
for name, flags, steps in CASES:
    measured = {plain: [], guided: []}
    for _, cllm in turns(runs, measured):
        measured[cllm].append(train(cllm, [*flags, "--threads", 1], steps))
    speeds = {cllm: [run.speed for run in of] for cllm, of in measured.items()}
    losses = {cllm: of[-1].last["loss"] for cllm, of in measured.items()}
    gains = sorted(100 * (b / a - 1) for a, b in zip(speeds[plain], speeds[guided]))
    print(
        f"{name:<16}{median(speeds[plain]):>17.0f}{median(speeds[guided]):>18.0f}"
        f"{median(gains):>+7.1f} %{losses[plain]:>11.4f}{losses[guided]:>9.4f}"
        f"   ({gains[0]:+.1f} to {gains[-1]:+.1f} %)",
        flush=True,
    )
PYTHON
