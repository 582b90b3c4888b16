#!/usr/bin/env bash
# Times matrix products of Crystalline's kernels, gemm, matrixmultiply, OpenBLAS and PyTorch in
# turns, with AMX, AVX-512 and AVX2, on one thread and on two. gemm/README.md has more.
#
# Usage: benches/peers/gemm.sh [RUNS [THREADS [ISAS [OPTION...]]]]
#   benches/peers/gemm.sh                            5 samples of each, "1 2", "amx avx512 avx2"
#   benches/peers/gemm.sh 7 1 avx512 --groups square
#   benches/peers/gemm.sh 5 1 "avx scalar"
#
# OpenBLAS is taken from the Python package scipy-openblas32, or is the library that $OPENBLAS
# names. PyTorch is that of benches/peers/run.sh if it has been set up, or of $PYTHON. What
# cannot be had is left out, and the script says so.
set -euo pipefail
cd "$(dirname "$0")/../.."
runs=${1:-5}
threads=${2:-1 2}
isas=${3:-amx avx512 avx2}
shift $(($# < 3 ? $# : 3))
work=$PWD/target/peers-gemm
mkdir -p "$work"

# The versions whose figures are in the README.
package=scipy-openblas32==0.3.34.481.3
openblas=${OPENBLAS:-$work/openblas/scipy_openblas32/lib/libscipy_openblas.so}
if [ -z "${OPENBLAS:-}" ] && [ ! -f "$openblas" ]; then
    if ! python3 -m pip install --quiet --no-deps --target "$work/openblas" "$package" \
        > "$work/pip.log" 2>&1; then
        echo "gemm.sh: without OpenBLAS: $(tail -n 1 "$work/pip.log")" >&2
    fi
fi
options=()
if [ -f "$openblas" ]; then options+=(--openblas "$openblas"); fi
python=${PYTHON:-target/peers/venv/bin/python}
if [ -x "$(command -v "$python")" ]; then
    options+=(--python "$python")
else
    echo "gemm.sh: without PyTorch: benches/peers/run.sh sets it up" >&2
fi

for isa in $isas; do
    # What the CPU needs, and how OpenBLAS, PyTorch, its MKL and its oneDNN are told: OpenBLAS does not
    # know every CPU and then uses less than it could, the others would use more than Crystalline.
    build=avx2
    case $isa in
        amx) flag=amx_bf16 build=avx512 core=SkylakeX aten=avx512 mkl=AVX512_E4 onednn=AVX512_CORE_AMX ;;
        avx512) flag=avx512vl build=avx512 core=SkylakeX aten=avx512 mkl=AVX512_E3 onednn=AVX512_CORE_BF16 ;;
        avx2) flag=avx2 core=Haswell aten=avx2 mkl=AVX2 onednn=AVX2 ;;
        avx) flag=avx core=Sandybridge aten=default mkl=AVX onednn=AVX ;;
        scalar) flag=sse2 core=Prescott aten=default mkl=SSE4_2 onednn=SSE41 ;;
        *)
            echo "gemm.sh: $isa: the instruction sets are scalar, avx, avx2, avx512 and amx" >&2
            exit 2
            ;;
    esac
    if ! grep -q -w "$flag" /proc/cpuinfo; then
        echo "gemm.sh: without $isa: this CPU lacks it" >&2
        continue
    fi
    features=()
    if [ "$build" = avx512 ]; then features=(--features avx512); fi
    cargo build --quiet --locked --release --manifest-path benches/peers/gemm/Cargo.toml \
        --target-dir "$work/$build" ${features[@]+"${features[@]}"}
    for count in $threads; do
        (
            export OPENBLAS_CORETYPE=$core ATEN_CPU_CAPABILITY=$aten
            export MKL_ENABLE_INSTRUCTIONS=$mkl ONEDNN_MAX_CPU_ISA=$onednn
            # Operands in huge pages where the system has them, whoever multiplies them: as the pools of a step.
            # An empty GLIBC_TUNABLES does without.
            export GLIBC_TUNABLES=${GLIBC_TUNABLES-glibc.malloc.hugetlb=1}
            export MATMUL_NUM_THREADS=$count OMP_NUM_THREADS=$count RAYON_NUM_THREADS=$count
            "$work/$build/release/peers-gemm" --isa "$isa" --threads "$count" --runs "$runs" \
                ${options[@]+"${options[@]}"} "$@"
        )
        echo
    done
done
