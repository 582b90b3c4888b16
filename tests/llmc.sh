#!/usr/bin/env bash
# Exports models for llm.c, lets its trainer for CPUs read them, and compares the losses of the same
# tokens. Ends with an error if they differ.
#
# Usage: tests/llmc.sh FOLDER     the folder of llm.c, with `make train_gpt2` done; see
#                                 benches/peers/README.md for where it is from
#
# Needs Rust and Python 3 with numpy.
set -euo pipefail
llmc=$(realpath "${1:?usage: tests/llmc.sh FOLDER (of llm.c)}")
cd "$(dirname "$0")/.."
if [ ! -x "$llmc/train_gpt2" ]; then
    echo "tests/llmc.sh: no train_gpt2 in $llmc: build it with \`make train_gpt2\`" >&2
    exit 1
fi
cargo build --quiet --locked --release --package cllm
work=target/llmc
rm -rf "$work"
mkdir -p "$work"
exec "${PYTHON:-python3}" - "$PWD/target/release/cllm" "$work" "$llmc/train_gpt2" <<'PYTHON'
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

cllm, work, trainer = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
# Its trainer takes 5 batches of 4 x 64 tokens to validate.
BATCHES, SEQUENCES, LENGTH = 5, 4, 64
TOLERANCE = 1e-5


def run(*args) -> str:
    done = subprocess.run([cllm, *map(str, args)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"cllm {' '.join(map(str, args))}\nended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def compare(name: str, *flags) -> None:
    folder = work / name
    text, model = folder / "text.txt", folder / "model"
    folder.mkdir()
    text.write_text("".join(f"In the beginning {n} made {n * n} of it.\n" for n in range(2000)))
    small = "--n-layer 2 --n-head 2 --n-embd 64 --batch-size 4 --max-steps 40 --val-fraction 0"
    small = [*small.split(), "--sample-tokens", 0, "--block-size", LENGTH, "--seed", 3]
    run("train", "--data", text, *small, "--out-dir", folder / "run", *flags)
    run("export", "--format", "llmc", "--checkpoint", folder / "run", "--out", model)
    tokenizer = folder / "run" / "tokenizer.json"
    shards = folder / "shards"
    run("tokenize", "--data", text, "--tokenizer", tokenizer, "--out", shards, "--val-fraction", 0)
    ids = np.fromfile(shards / "train_000000.bin", dtype="<u2", offset=1024)
    ids = ids[: BATCHES * SEQUENCES * LENGTH + 1]
    data = model / "dev/data/tinyshakespeare"
    data.mkdir(parents=True)
    header = np.zeros(256, dtype=np.int32)
    header[:3] = 20240520, 1, len(ids)
    for part in ("train", "val"):
        with (data / f"tiny_shakespeare_{part}.bin").open("wb") as file:
            header.tofile(file)
            ids.tofile(file)
    own = folder / "own"
    own.mkdir()
    (own / "val_000000.bin").write_bytes((data / "tiny_shakespeare_val.bin").read_bytes())
    said = run("eval", "--checkpoint", folder / "run", "--data", own, "--log-format", "json")
    ours = json.loads(said)["val_loss"]
    with subprocess.Popen(["stdbuf", "-oL", trainer], cwd=model, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if found := re.match(r"val loss (\S+)", line):
                process.kill()
                break
        else:
            sys.exit(f"{name}: llm.c did not validate")
    theirs = float(found[1])
    differs = abs(ours / theirs - 1)
    print(f"{name:<8} loss {ours:.6f}, llm.c {theirs:.6f}, differs by {differs:.1e}")
    if not differs <= TOLERANCE:
        sys.exit(f"{name}: llm.c computes something else")


compare("bytes", "--tokenizer", "bytes")
compare("bpe", "--tokenizer", "bpe:300")
compare("no-bias", "--tokenizer", "bytes", "--no-bias")
print("llm.c computes what cllm computes")
PYTHON
