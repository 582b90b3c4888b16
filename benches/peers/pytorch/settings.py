"""The ways in which PyTorch is run: eager or compiled, its products' type, its libraries."""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from works import PEERS

# That of run.sh: of target/peers/venv, or what PYTHON names.
PYTHON = Path(sys.executable)
IOMP = Path(sys.prefix) / "lib" / "libiomp5.so"
TCMALLOC = PEERS / "debian" / "usr" / "lib" / "x86_64-linux-gnu" / "libtcmalloc_minimal.so.4"

LIBRARIES = {
    "default": "allocator of the C library, GNU OpenMP",
    "tuned": "tcmalloc, Intel's OpenMP runtime, huge pages",
}


@dataclass(frozen=True)
class Setting:
    """One way to run PyTorch on a work."""

    compiled: bool
    dtype: str
    libraries: str

    @property
    def name(self) -> str:
        return f"{'compiled' if self.compiled else 'eager'} {self.dtype} {self.libraries}"

    @property
    def is_f32(self) -> bool:
        return self.dtype == "f32"

    def flags(self) -> list[str]:
        return ["--dtype", self.dtype, *(["--compile"] if self.compiled else [])]

    def environment(self, threads: int) -> dict[str, str]:
        return environment(self.libraries, threads)


def environment(libraries: str, threads: int) -> dict[str, str]:
    """The environment of a PyTorch process, free of what this one's would add to it."""
    ours = ("THP_", "OMP_", "KMP_", "MKL_", "GOMP_", "ONEDNN_", "TORCH", "LD_PRELOAD")
    variables = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    variables["OMP_NUM_THREADS"] = str(threads)
    variables["TORCHINDUCTOR_CACHE_DIR"] = str(PEERS / "inductor")
    if libraries == "tuned":
        preload = [str(path) for path in (IOMP, TCMALLOC) if path.exists()]
        variables |= {
            "LD_PRELOAD": ":".join(preload),
            # As PyTorch's tuning guide for CPUs has them.
            "KMP_BLOCKTIME": "1",
            "KMP_AFFINITY": "granularity=fine,compact,1,0",
            # Has its allocator ask the system for huge pages, for tensors of 2 MiB and more.
            "THP_MEM_ALLOC_ENABLE": "1",
        }
    return variables


def available(kinds: list[str]) -> tuple[list[Setting], list[str]]:
    """All settings of these kinds ("eager", "compiled") that can be had here, and what is
    missing in words."""
    missing = []
    libraries = ["default"]
    if absent := [path.name for path in (IOMP, TCMALLOC) if not path.exists()]:
        missing.append(f"without {' and '.join(absent)}, which could not be had (run.sh says why)")
    if len(absent) < 2:
        libraries.append("tuned")
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if "compiled" in kinds and not compiler:
        missing.append("without torch.compile, which needs a C++ compiler: install g++")
    ways = [kind == "compiled" for kind in kinds if kind == "eager" or compiler]
    settings = [
        Setting(compiled, dtype, library)
        for dtype in ("f32", "bf16")
        for compiled in ways
        for library in libraries
    ]
    return settings, missing


def script(name: str) -> Path:
    """One of the programs beside this module."""
    return Path(__file__).with_name(name)
