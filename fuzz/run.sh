#!/usr/bin/env bash
# Has libFuzzer look for bytes that do harm: that make a reader panic, hang, take memory without end, touch memory that
# is not its own, or give another result than what was written. Each target of `fuzz/targets` runs for its time, two at
# a time, from its seeds (`fuzz/seeds`) and from what earlier runs have found to be new (`target/fuzz/corpus`).
#
# Usage: fuzz/run.sh [SECONDS] [TARGET...]     (600 seconds each of all targets: an hour and a quarter)
#        fuzz/run.sh 0 [TARGET...]             (looks for nothing: the table of what was found last)
#
# Needs a nightly compiler, and a C++ compiler for libFuzzer; cargo-fuzz is built into target/fuzz if it is not there.
# The table says how often each target ran, how many edges of the program's flow its corpus reaches (cov) and how many
# features of them libFuzzer tells apart (ft), what the corpus has, and what was found. COVERAGE=1 also says how many of
# the lines of each reader the corpus reaches (the time of one more build; wants llvm-profdata and llvm-cov of the
# compiler's LLVM: in LLVM, say /usr/lib/llvm-22/bin, of the component llvm-tools, or of Debian's packages, which it
# unpacks into target/fuzz/llvm). JOBS says how many run at a time. Exit code 1: something was found; it lies in
# target/fuzz/artifacts/TARGET. Mend it, and add it to fuzz/seeds/TARGET as found-WHAT.
set -euo pipefail
cd "$(dirname "$0")/.."
version=0.13.2
root=$PWD
home=$root/target/fuzz
seconds=600
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
    seconds=$1
    shift
fi
all=()
for program in fuzz/fuzz_targets/*.rs; do
    all+=("$(basename "$program" .rs)")
done
targets=("${@:-${all[@]}}")
# One input takes no longer, in seconds; no piece of memory is larger, nor all of it, in MB; nor an input, in bytes.
timeout=10 piece=256 memory=1024 longest=20480
toolchain=${TOOLCHAIN:-nightly}

fuzz() {
    PATH=$home/bin:$PATH cargo "+$toolchain" fuzz "$@"
}
triple=$(rustc "+$toolchain" -vV | sed -n 's/^host: //p')

build() {
    local target
    if ! "$home/bin/cargo-fuzz" fuzz --version 2> /dev/null | grep -qF " $version"; then
        echo "building cargo-fuzz $version"
        cargo install --quiet --locked --version "$version" --root "$home" --target-dir "$home/cargo-fuzz" cargo-fuzz
        rm -rf "$home/cargo-fuzz"
    fi
    echo "building ${#targets[@]} targets"
    for target in "${targets[@]}"; do
        fuzz build --target-dir "$home/build" "$target" 2>> "$home/build.log" || {
            tail -n 40 "$home/build.log"
            exit 2
        }
    done
}

look() {
    local target=$1
    local corpus=$home/corpus/$target found=$home/artifacts/$target
    mkdir -p "$corpus" "$found"
    # Leaks are not looked for: what is made once is kept. A finding ends the run.
    nice -n "${NICE:-10}" "$home/build/$triple/release/$target" -max_total_time="$seconds" -timeout="$timeout" \
        -malloc_limit_mb="$piece" -rss_limit_mb="$memory" -max_len="$longest" -detect_leaks=0 -print_final_stats=1 \
        -artifact_prefix="$found/" "$corpus" "fuzz/seeds/$target" > "$home/$target.log" 2>&1 \
        && echo 0 > "$home/$target.status" || echo $? > "$home/$target.status"
}

look_at_all() {
    local target running=0
    echo "looking, $seconds s each"
    for target in "${targets[@]}"; do
        rm -f "$home/$target.status"
        look "$target" &
        running=$((running + 1))
        if [ "$running" -ge "${JOBS:-2}" ]; then
            wait -n
            running=$((running - 1))
        fi
    done
    wait
}

# Lines of the sources named that the corpus and the seeds reach.
reader() {
    case $1 in
        c_interface) echo capi/src ;;
        checkpoint) echo core/src/checkpoint ;;
        config) echo 'runner/src/cli/(file|resolve|validate|value)|runner/src/tune/store' ;;
        gguf) echo 'runner/src/gguf/(read|value|keys|tokens|import)' ;;
        http) echo 'runner/src/serve/(request|fields|guard|body|routes|texts)' ;;
        inspect) echo 'runner/src/inspect|runner/src/trace/chrome' ;;
        lines) echo 'runner/src/data/(instructions|pieces|shapes)|runner/src/choices/items' ;;
        peft) echo 'runner/src/lora/peft' ;;
        run_folder) echo 'runner/src/(settings|train/metrics|report/data|report/events)' ;;
        shard) echo 'runner/src/data/(shard|sums)' ;;
        template) echo 'runner/src/chat/(ahead|bounds|dialogue|message|template|weighed|turns|json)' ;;
        text) echo 'runner/src/data/(pieces|encode)|runner/src/tokenizer/(chars|parts)' ;;
        tokenizer) echo 'runner/src/tokenizer' ;;
        transformers) echo 'runner/src/hf/(import|weights|config|names|merges)|runner/src/exchange/tokens' ;;
    esac
}
# Where llvm-profdata and llvm-cov are that know the profiles of this compiler: each LLVM has its own.
find_llvm() {
    local major at
    major=$(rustc "+$toolchain" -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
    for at in "${LLVM:-}" "$(rustc "+$toolchain" --print sysroot)/lib/rustlib/$triple/bin" "/usr/lib/llvm-$major/bin" \
        "$home/llvm/bin"; do
        if [ -x "$at/llvm-profdata" ] && [ -x "$at/llvm-cov" ]; then
            LLVM=$at
            return
        fi
    done
    # shellcheck source=tests/support/debian.sh
    . tests/support/debian.sh
    if ! { unpack_package "$home/llvm" "llvm-$major" && mkdir "$home/llvm/bin" \
        && start_unpacked "$home/llvm/bin/llvm-cov" "$home/llvm/root/usr/lib/llvm-$major/bin/llvm-cov" \
        && start_unpacked "$home/llvm/bin/llvm-profdata" "$home/llvm/root/usr/lib/llvm-$major/bin/llvm-profdata"; }; then
        rm -rf "$home/llvm"
        echo "COVERAGE=1 wants llvm-profdata and llvm-cov of LLVM $major: \`rustup component add llvm-tools --toolchain" \
            "$toolchain\`, or \`apt-get install llvm-$major\`, or LLVM=FOLDER that has both" >&2
        exit 2
    fi
    LLVM=$home/llvm/bin
}
lines() {
    local target=$1
    local log=$home/$target.coverage raw=$home/$target.profraw
    # Not cargo-fuzz's own: that wants a component of the compiler that not everybody has.
    RUSTFLAGS="-C instrument-coverage --cfg fuzzing" cargo "+$toolchain" build --quiet --release --manifest-path \
        fuzz/Cargo.toml --target-dir "$home/coverage" --bin "$target" 2>> "$home/build.log" || return 0
    rm -f "$raw"
    LLVM_PROFILE_FILE=$raw "$home/coverage/release/$target" -runs=0 -detect_leaks=0 "$home/corpus/$target" \
        "fuzz/seeds/$target" > "$log" 2>&1 || return 0
    "$LLVM/llvm-profdata" merge -sparse "$raw" -o "$raw.merged" 2>> "$log" || return 0
    "$LLVM/llvm-cov" export -summary-only -instr-profile "$raw.merged" "$home/coverage/release/$target" 2>> "$log" \
        | python3 -c '
import json, re, sys
files = json.load(sys.stdin)["data"][0]["files"]
lines = [f["summary"]["lines"] for f in files if re.search(sys.argv[1], f["filename"])]
count, covered = sum(l["count"] for l in lines), sum(l["covered"] for l in lines)
print(f"{covered / max(count, 1):.0%} of {count}")' "$(reader "$target")"
}

if [ "$seconds" -gt 0 ]; then
    build
    look_at_all
fi
if [ "${COVERAGE:-0}" = 1 ]; then
    find_llvm
fi
failed=0
printf '\n%-14s %12s %8s %7s %8s %7s %9s  %-12s %s\n' target runs seconds cov ft corpus bytes lines findings
for target in "${targets[@]}"; do
    log=$home/$target.log
    if [ ! -e "$home/$target.status" ]; then
        printf '%-14s has not run\n' "$target"
        continue
    fi
    stat() { grep -aoP "(?<=$1)\d+" "$log" | tail -n 1; }
    runs=$(stat 'stat::number_of_executed_units: ' || true)
    took=$(grep -aoP '(?<=runs in )\d+' "$log" | tail -n 1 || true)
    cov=$(stat ' cov: ' || true) ft=$(stat ' ft: ' || true)
    count=$(find "$home/corpus/$target" -type f | wc -l)
    bytes=$(du -sb --apparent-size "$home/corpus/$target" | cut -f 1)
    found=none reached=-
    if [ "$(cat "$home/$target.status")" != 0 ]; then
        found=$(grep -aoP '(?<=SUMMARY: ).*' "$log" | tail -n 1 || true)
        found="${found:-see $log}"
        failed=1
    elif [ "${COVERAGE:-0}" = 1 ]; then
        reached=$(lines "$target")
    fi
    printf '%-14s %12s %8s %7s %8s %7s %9s  %-12s %s\n' "$target" "${runs:-?}" "${took:-?}" "${cov:-?}" "${ft:-?}" \
        "$count" "$bytes" "${reached:-?}" "$found"
done
exit "$failed"
