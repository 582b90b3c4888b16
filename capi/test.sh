#!/usr/bin/env bash
# Builds the C interface, and what is written in C for it: runs the examples and every error path as they are, with
# AddressSanitizer and UndefinedBehaviorSanitizer, and under valgrind where that is installed; links the shared library
# too, and reads the header as C++. The library itself is not built for the sanitizers here, so they see what C does, and what
# it hands over; `tests/sanitizers.sh address capi` has one that is, and valgrind looks at both.
#
# Usage: capi/test.sh     (half a minute of CPU, and a minute for the library if it is not built)
#
# Needs Rust, gcc and nm; ends with 77 where one of them is missing, and behind all else where valgrind is. What is built lies in target/capi, or where TARGET says.
set -euo pipefail
for need in gcc nm; do
    if ! command -v "$need" > /dev/null; then
        echo "the C interface is not tried: no $need" >&2
        exit 77
    fi
done
TARGET=${TARGET:+$(realpath -m "$TARGET")}
cd "$(dirname "$0")"
target=$(realpath -m "${TARGET:-../target/capi}")
cargo build --quiet --locked --release --target-dir "$target"
built=$target/release
out=$target/c
mkdir -p "$out"

symbols=$(nm "$built/libcrystalline.a" 2> /dev/null || true)
if ! grep -qw cllm_trainer_create <<< "$symbols"; then
    echo "nm does not read libcrystalline.a: its function cllm_trainer_create is not there" >&2
    exit 1
fi
if grep -E '__rust_(re)?alloc' <<< "$symbols" >&2; then
    echo "libcrystalline.a refers to an allocator" >&2
    exit 1
fi
flags=(-std=c11 -Wall -Wextra -Werror -O1 -g)
libraries=(-lpthread -lm)
compile() {
    gcc "${flags[@]}" "$@" "${libraries[@]}"
}
say() {
    echo "== $*"
    "$@"
}
valgrind=$(command -v valgrind || true)
if command -v g++ > /dev/null; then
    g++ -Wall -Wextra -Werror -fsyntax-only -x c++ include/crystalline.h
fi
for source in examples/*.c tests/*.c; do
    name=$(basename "$source" .c)
    compile "$source" "$built/libcrystalline.a" -o "$out/$name"
    say "$out/$name"
    compile -fsanitize=address,undefined -fno-sanitize-recover "$source" "$built/libcrystalline.a" -o "$out/$name-sanitized"
    say "$out/$name-sanitized"
    if [ -n "$valgrind" ]; then
        # A few steps: it computes a hundred times as long.
        say valgrind -q --error-exitcode=99 --leak-check=full --show-leak-kinds=all --fair-sched=yes "$out/$name" 4
    fi
done
# The program of README.md, by the command that stands there; only the folder of what was built may be another.
sed -n '/^```c$/,/^```$/p' README.md | grep -v '^```' > "$out/first.c"
command=$(grep '^gcc .*first\.c' README.md)
for known in -Iinclude ' first.c ' ../target/capi/release/libcrystalline.a ' -o first'; do
    if [[ $command != *"$known"* ]]; then
        echo "README.md: its command for first.c has no $known: $command" >&2
        exit 1
    fi
done
command=${command/ first.c / $out/first.c }
command=${command/..\/target\/capi/$target}
say $command -Wall -Wextra -Werror -o "$out/first"
say "$out/first"
"$out/first" | grep -qF "quick brown" || {
    echo "README.md: its program has learnt nothing" >&2
    exit 1
}
# As the header asserts.
if echo '#include "crystalline.h"' | gcc -std=c11 -fshort-enums -fsyntax-only -Iinclude -x c - 2> /dev/null; then
    echo "the header takes enumerations of one byte" >&2
    exit 1
fi
compile examples/pthreads.c "-L$built" -lcrystalline "-Wl,-rpath,$built" -o "$out/shared"
say "$out/shared"
if [ -z "$valgrind" ]; then
    echo "the C interface does what its header says, but was not run under valgrind, which is not installed" >&2
    exit 77
fi
echo "the C interface does what its header says"
