#!/usr/bin/env bash
# Runs the tests of all that is unsafe, or that threads share, under AddressSanitizer or ThreadSanitizer.
#
# Stable Rust has no sanitizer's runtime. So this takes Debian's compiler and links LLVM's runtime of the same version. For
# threads std is built from Debian's source of it with everything else: of one that is not built for the sanitizer it
# would not know what its locks and channels order. Each sanitizer has to find a planted error first, or the rest would
# say nothing. Nothing is suppressed, and the first report ends the run.
#
# What they cannot see:
#
#   address   A stray access that stays inside of one pool, or lands in another allocation: a pool is one allocation,
#             cut by the plan, and only its ends are guarded. Pieces are checked against the pool in
#             `core/src/shared.rs`, and `tests/memory.rs` looks for lines that a step leaves or ought not to touch.
#             Mapped memory has no guards but the pages around it. Vector loads and stores by intrinsics are seen,
#             those of `asm!` (AMX) and what the system writes are not. Only instruction sets of this CPU run.
#             What std itself does is seen where it is generic. Reads of what was never written are for valgrind
#             (`capi/test.sh`), and for the NaN that tests fill pools with.
#   thread    Orders by `atomic::fence`: the sanitizer does not know them, and would take for a race what only fences
#             order. The engine's fences order atomic flags among themselves (who sleeps, who is inside a tile); all
#             plain memory is handed over by a release and an acquire of one word, which it knows. That the fences do
#             their part is shown by the models of `.ci/loom`. Two tiles that touch the same bytes are found if they
#             are on two threads without an order: in runs that happen here; `core/src/engine/races.rs` looks at all
#             pairs. Other processes that share a mapped file are not seen.
#
# Usage: tests/sanitizers.sh address|thread [PART...]   (a long run: all that it looks at is built anew for each)
#
# Parts: capi, the library for C with its examples on threads of C's, the shortest of them; kernels, core, root and
# runner, the tests of these packages (of the kernels without the census, which looks at machine code). All of those that
# the sanitizer has, if none is named: for threads all but kernels, which share nothing. STRESS_STEPS (300) and STEAL_SEEDS (6) are how long the stress test of the engine is.
#
# Needs apt-get, which gets 300 MB into target/sanitizers without installing them: exit code 77 where there is none.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/support/rust.sh
. tests/support/package.sh
root=$PWD
work=$root/target/sanitizers
target=x86_64-unknown-linux-gnu

sanitizer=${1:-}
shift || true
case $sanitizer in
    address) parts="capi kernels core root runner" ;;
    thread) parts="capi core root runner" ;;
    *)
        echo "usage: tests/sanitizers.sh address|thread [PART...]" >&2
        exit 2
        ;;
esac
for part in "$@"; do
    case " $parts " in
        *" $part "*) ;;
        *)
            echo "no part \`$part\` of the $sanitizer sanitizer: it has $parts" >&2
            exit 2
            ;;
    esac
done
parts=${*:-$parts}

want_rust "$work/rust" rust-web-src libclang-rt-22-dev || exit 77
runtime=$TOOLS/usr/lib/llvm-22/lib/clang/22/lib/linux
symbols=external_symbolizer_path=$(command -v addr2line || true)
case $sanitizer in
    address)
        std=() core=()
        libraries="$runtime/libclang_rt.asan_static-x86_64.a,$runtime/libclang_rt.asan-x86_64.a"
        report="AddressSanitizer: heap-buffer-overflow"
        export ASAN_OPTIONS="detect_stack_use_after_return=1:strict_init_order=1:$symbols"
        ;;
    thread)
        std=(-Zbuild-std) core=(-Zbuild-std=core)
        libraries="$runtime/libclang_rt.tsan-x86_64.a"
        report="ThreadSanitizer: data race"
        export TSAN_OPTIONS="halt_on_error=1:exitcode=66:$symbols"
        ;;
esac
export STRESS_STEPS=${STRESS_STEPS:-300} STEAL_SEEDS=${STEAL_SEEDS:-6}
export RUSTC RUSTC_BOOTSTRAP=1 CARGO_INCREMENTAL=0
# The runtime stands before all else: the C library behind it then has what it needs.
flags="-Zsanitizer=$sanitizer -Zexternal-clangrt -Clink-arg=-Wl,--export-dynamic"
flags+=" -Zpre-link-arg=-Wl,--whole-archive,$libraries,--no-whole-archive"
# To be built soon: the kernels as one unit, optimised as they are given away, would take a quarter of an hour by itself.
profile=()
for setting in opt-level=2 package.cllm-kernels.codegen-units=8 package.cllm-kernels.opt-level=1 \
    package.cllm.opt-level=1 package.iced-x86.opt-level=0; do
    profile+=(--config "profile.test.$setting" --config "profile.release.$setting")
done

check() {
    echo "== $*"
    RUSTFLAGS=$flags "$CARGO" test --quiet "${std[@]}" --target "$target" --target-dir "$work/$sanitizer" \
        "${profile[@]}" "$@"
}

# Nothing else is built for it.
planted=$work/planted
mkdir -p "$planted/tests"
printf '[package]\nname = "planted"\nedition = "2024"\n\n[workspace]\n' > "$planted/Cargo.toml"
test_profile >> "$planted/Cargo.toml"
cat > "$planted/tests/planted.rs" << 'RUST'
#[test]
fn a_race() {
    static mut COUNT: u64 = 0;
    // Both at once: nothing that ends or starts a thread comes in between.
    let start = std::sync::Barrier::new(2);
    let add = || {
        start.wait();
        for _ in 0..1000 {
            unsafe { (&raw mut COUNT).write_volatile(COUNT + 1) };
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(add);
        scope.spawn(add);
    });
    println!("{}", unsafe { std::ptr::read_volatile(&raw const COUNT) });
}

#[test]
fn two_floats_too_far() {
    // As kernels reach memory: a vector is loaded by an intrinsic, and half of it lies behind the end.
    let pool = std::hint::black_box(vec![1.0_f32; 48]);
    let vector = unsafe { std::arch::x86_64::_mm_loadu_ps(pool.as_ptr().add(46)) };
    println!("{vector:?}");
}
RUST
case $sanitizer in
    address) error=two_floats_too_far ;;
    thread) error=a_race ;;
esac
mkdir -p "$work/$sanitizer"
if (cd "$planted" && check --test planted -- "$error") > "$work/$sanitizer/planted.log" 2>&1 ||
    ! grep -q "$report" "$work/$sanitizer/planted.log"; then
    cat "$work/$sanitizer/planted.log"
    echo "the sanitizer does not find a planted error" >&2
    exit 1
fi
echo "a planted error is found: $report"

# The tests of the root that hand memory over or share it.
package=$work/package
root_tests=(adapters allocations documents engine engine_stress generate golden memory optimizers origin pieces slices)
small_package "$package" "${root_tests[@]}"

# The tests of the kernels, as options of cargo's.
kernel_tests() {
    local test name
    for test in kernels/tests/*.rs kernels/tests/*/main.rs; do
        name=$(basename "${test%/main.rs}" .rs)
        [ "$name" = census ] || printf -- '--test %s ' "$name"
    done
}

# link_c SOURCE PROGRAM: a program of C's with the library, which is itself under the sanitizer: in memory that C gets by
# `malloc`, each handle has guards around its own, and threads are those of C.
link_c() {
    gcc -std=c11 -O1 -g -Iinclude "$1" "$work/$sanitizer/$target/release/libcrystalline.a" -Wl,--export-dynamic \
        "-Wl,--whole-archive,$libraries,--no-whole-archive" -lpthread -lm -ldl -lrt -lresolv -o "$2"
}

# Memory that is shorter than C says: the library cannot know, and the sanitizer has to.
short() {
    local out=$1
    sed 's|aligned_alloc(CLLM_ALIGNMENT, bytes)|aligned_alloc(CLLM_ALIGNMENT, bytes - CLLM_ALIGNMENT)|
        s|"../include/|"|' examples/scheduler.c > "$out/short.c"
    if ! grep -q 'bytes - CLLM_ALIGNMENT' "$out/short.c"; then
        echo "examples/scheduler.c has no memory that could be cut" >&2
        exit 1
    fi
    link_c "$out/short.c" "$out/short"
    if "$out/short" > "$out/short.log" 2>&1 || ! grep -q "$report" "$out/short.log"; then
        cat "$out/short.log"
        echo "the sanitizer does not find that the library writes behind the end of its memory" >&2
        exit 1
    fi
    echo "memory that is shorter than said is found: $report"
}

# The interface for C.
capi() {
    local out=$work/$sanitizer/c source name
    mkdir -p "$out"
    cd capi
    RUSTFLAGS=$flags "$CARGO" rustc --quiet --locked --release "${core[@]}" "${profile[@]}" --target "$target" \
        --target-dir "$work/$sanitizer" --crate-type staticlib
    if [ "$sanitizer" = address ]; then
        short "$out"
    fi
    # From here: one of them reads a file of its tests.
    for source in examples/pthreads.c examples/scheduler.c tests/errors.c tests/measuring.c tests/settings.c; do
        name=$out/$(basename "$source" .c)
        link_c "$source" "$name"
        echo "== $source"
        "$name"
    done
}

for part in $parts; do
    case $sanitizer-$part in
        *-capi) (capi) ;;
        address-kernels)
            # All but the census, which looks at machine code: that of such a build is another.
            # shellcheck disable=SC2046 # several words
            check --package cllm-kernels --lib $(kernel_tests)
            ;;
        address-core) check --package cllm-core --lib ;;
        # Of its tests, those with threads.
        thread-core) check --package cllm-core --lib -- ring:: engine::tests generate:: ;;
        address-root)
            # shellcheck disable=SC2046 # several words
            (cd "$package" && check $(printf -- '--test %s ' "${root_tests[@]}") -- --skip any_number_of_workers)
            ;;
        thread-root)
            # All instruction sets with up to eight workers would take an hour, and share no other words.
            (cd "$package" && check --test allocations --test engine --test engine_stress --test generate \
                --test pieces --test slices -- --skip any_number_of_workers)
            ;;
        # Without the readers of other programs' files, which are safe code over the same views, and what is about how fast
        # the machine is, which is far slower here.
        *-runner)
            check --package cllm --no-default-features --lib -- --skip bench::machine --skip an_event_costs_less_than
            ;;
    esac
done
echo "clean under the $sanitizer sanitizer: $parts"
