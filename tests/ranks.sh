#!/usr/bin/env bash
# Runs of several ranks under MPI on this machine: the same weights on 1, 2 and 4 ranks and without any; a rank that
# panics or is killed at random ends the others, and the run goes on, on another number of ranks, to the same weights;
# two ranks of one thread against one rank of one thread, in turns; what the fixed order of additions costs beside
# MPI_Allreduce.
#
# Usage: tests/ranks.sh [KILLS [RUNS]]     (20 kills and 5 runs of each: about ten minutes)
#   tests/ranks.sh 0      no kills;   tests/ranks.sh 20 0      nothing is measured;   tests/ranks.sh speed      nothing else
#
# Needs Rust, Python 3, and an MPI with its compiler wrapper and libclang, which are installed from Debian's packages if
# they are not there: exit code 77 where that cannot be. Machines of fewer CPUs than ranks are no hindrance but to the
# last part, which wants two that do nothing else. CLLM names a program that was built with the feature mpi already.
# What was printed stays in target/ranks.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v mpirun > /dev/null || ! command -v mpicc > /dev/null ||
    ! ls /usr/lib/llvm-*/lib/libclang*.so* /usr/lib/*/libclang*.so* > /dev/null 2>&1; then
    if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends \
        libopenmpi-dev openmpi-bin libclang-dev clang; } > /dev/null 2>&1; then
        echo "tests/ranks.sh: no MPI: install it (Debian, Ubuntu: apt-get install libopenmpi-dev openmpi-bin libclang-dev clang)" >&2
        exit 77
    fi
fi
if [ -z "${CLLM:-}" ]; then
    cargo build --quiet --locked --release --package cllm --features mpi
    CLLM=target/release/cllm
fi
# Open MPI starts no more ranks than there are CPUs, and none for root, unless told.
export OMPI_MCA_rmaps_base_oversubscribe=1
if [ "$(id -u)" = 0 ]; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
if [ "${1:-20}" != speed ]; then
    cargo test --quiet --locked --release --package cllm --features mpi --test mpi
    echo "a rank that panics ends the others"
fi
rm -rf target/ranks
mkdir -p target/ranks
exec python3 tests/support/ranks.py "$CLLM" target/ranks "${1:-20}" "${2:-5}"
