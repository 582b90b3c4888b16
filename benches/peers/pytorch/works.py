"""The works that Crystalline and its peers are compared on, and their start files.

A start file holds the weights, the batches and the losses of a run of `cllm train`
(examples/peer_inputs.rs), so that a peer begins with the same weights and sees the same
batches. Needs nothing but Python's own library:

    python3 benches/peers/pytorch/works.py A B64     # target/peers/start/A.safetensors, ...
"""

import argparse
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT / "target" / "reference" / "data"
PEERS = ROOT / "target" / "peers"
CHARS = PEERS / "chars"
CLLM = ROOT / "target" / "release" / "cllm"

# Bytes of the reference text whose characters work C trains on.
CHARS_BYTES = 4_000_000
# Steps of a start file; losses are compared over these.
STEPS = 20


@dataclass(frozen=True)
class Work:
    """One training work: what `cllm train` is told, and how long a timed process is."""

    name: str
    title: str
    flags: tuple[str, ...]
    # Steps before the clock starts, and steps that are timed.
    warmup: int
    timed: int


def _shards(path: Path, *flags: str) -> tuple[str, ...]:
    return ("--data", str(path), *flags)


# On two cores a timed process takes ten seconds or so, the imports apart; B1024 thirty.
WORKS = {
    work.name: work
    for work in [
        Work("A", "reference workload", _shards(DATA, "--preset", "reference"), 2, 8),
        Work(
            "B64",
            "GPT-2 124M, 4 x 64",
            _shards(DATA, "--preset", "gpt2", "--vocab-size", "50257", "--block-size", "64"),
            2,
            6,
        ),
        Work(
            "B1024",
            "GPT-2 124M, 4 x 1024",
            _shards(DATA, "--preset", "gpt2", "--vocab-size", "50257"),
            1,
            2,
        ),
        # nanoGPT's: config/train_shakespeare_char.py with the flags of its README for a CPU.
        Work(
            "C",
            "nanoGPT's CPU recipe",
            _shards(
                CHARS, *"--vocab-size 65 --n-layer 4 --n-head 4 --n-embd 128".split(),
                *"--block-size 64 --batch-size 12 --no-bias --learning-rate 1e-3".split(),
                *"--min-lr 1e-4 --warmup-steps 100 --beta2 0.99 --weight-decay 0.1".split(),
            ),
            20,
            200,
        ),
        Work(
            "D",
            "1 x 2048, width 512, 8 layers",
            _shards(
                DATA, *"--preset reference --n-layer 8 --n-head 8 --n-embd 512".split(),
                *"--d-ff 2048 --block-size 2048 --batch-size 1".split(),
            ),
            2,
            6,
        ),
    ]
}

# Models for generation: the same after a few steps, with room for 128 + 256 tokens.
MODELS = {
    work.name: work
    for work in [
        Work(
            "E-A",
            "generation, reference model",
            _shards(DATA, *"--preset reference --block-size 384 --batch-size 4".split()),
            0,
            STEPS,
        ),
        Work(
            "E-B",
            "generation, GPT-2 124M",
            _shards(
                DATA, *"--preset gpt2 --vocab-size 50257 --block-size 384".split(),
                *"--batch-size 1".split(),
            ),
            0,
            STEPS,
        ),
    ]
}


def run(command: list[str | Path], **more) -> subprocess.CompletedProcess:
    """Runs a command; its standard error is ours, and a failure ends the program."""
    return subprocess.run([str(part) for part in command], check=True, text=True, **more)


def train_command(cllm: Path, work: Work, out: Path, steps: int, *flags: str) -> list[str | Path]:
    """`cllm train` on a work, with every step logged as JSON and nothing else done that it
    can do without. Sizes of blocks are those of every machine with such caches."""
    return [
        cllm, "train", *work.flags, "--max-steps", str(steps), "--log-interval", "1",
        "--eval-batches", "1", "--keep-checkpoints", "1", "--sample-tokens", "0",
        "--tuning", "off", "--log-format", "json", "--out-dir", out, *flags,
    ]


def make_data(cllm: Path) -> None:
    """The reference data set, and the characters of its beginning as shards."""
    if not (DATA / "meta.json").exists():
        run([cllm, "data", "reference", "--out", DATA], stdout=subprocess.DEVNULL)
    if not (CHARS / "meta.json").exists():
        CHARS.mkdir(parents=True, exist_ok=True)
        text = CHARS.with_suffix(".txt")
        with (DATA / "reference.txt").open("rb") as reference:
            text.write_bytes(reference.read(CHARS_BYTES))
        tokenize = [cllm, "tokenize", "--data", text, "--tokenizer", "chars", "--out", CHARS]
        run(tokenize, stdout=subprocess.DEVNULL)


def start_file(name: str) -> Path:
    """Where the start file of a work is."""
    return PEERS / "start" / f"{name}.safetensors"


def run_folder(name: str) -> Path:
    """Where the run of a start file is; kept only for models for generation."""
    return PEERS / "start" / name


def make_start(work: Work, cllm: Path, via: list[str]) -> Path:
    """Makes the start file of a work unless it is there. That of a model for generation has
    the last weights as well, and its run folder the checkpoint."""
    file = start_file(work.name)
    if file.exists():
        return file
    out = run_folder(work.name)
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    train = train_command(cllm, work, out, STEPS, "--dtype", "f32")
    run([*via, *train], stdout=subprocess.DEVNULL)
    example = CLLM.parent / "examples" / "peer_inputs"
    unfinished = file.with_suffix(".tmp")
    run([example, out, unfinished, *(["--final"] if work.name in MODELS else [])])
    unfinished.rename(file)
    if work.name not in MODELS:
        shutil.rmtree(out)
    return file


def build(only_inputs: bool = False) -> None:
    """Builds `cllm`, unless another one is given, and the program that writes start files."""
    cargo = ["cargo", "build", "--quiet", "--locked", "--release"]
    if not only_inputs:
        run([*cargo, "--package", "cllm"], cwd=ROOT)
    run([*cargo, "--example", "peer_inputs"], cwd=ROOT)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the start files of works.")
    every = WORKS | MODELS
    parser.add_argument("works", nargs="+", choices=every, metavar="WORK", help=", ".join(every))
    parser.add_argument("--cllm", type=Path, help="a built binary, instead of building one")
    args = parser.parse_args()
    build(only_inputs=args.cllm is not None)
    cllm = args.cllm or CLLM
    make_data(cllm)
    for name in args.works:
        print(make_start(every[name], cllm, []))


if __name__ == "__main__":
    main()
