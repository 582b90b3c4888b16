"""llm.c's trainer for CPUs on the shape of work B64: its files, its runs, its losses.

Its batch of 4 x 64, AdamW's numbers (a rate of 1e-4, no decay, no clip) and its way through
the data are fixed in train_gpt2.c. So it gets a shard of one batch, which it takes each time,
and PyTorch does the same to compare the losses.
"""

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

import start
from measure import Sample, run_torch
from settings import Setting
from works import PEERS, Work, start_file

WORK = "B64"
FOLDER = PEERS / "llmc"
CHECKPOINT_MAGIC, CHECKPOINT_VERSION = 20240326, 3
SHARD_MAGIC, SHARD_VERSION = 20240520, 1
# It pads the vocabulary to a multiple of this.
PADDED = 128
# Of train_gpt2.c.
OPTIMIZER = {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0, "clip": 1e30}
RATE = 1e-4
STEPS = 20
# Two programs in fp32 that add in different orders.
TOLERANCE = 1e-4
# In the order of its ParameterTensors; those of layers hold all layers.
LAYERS = [
    "ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight",
    "attn.c_proj.bias", "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias",
    "mlp.c_proj.weight", "mlp.c_proj.bias",
]


def header(*numbers: int) -> np.ndarray:
    """256 words that begin with `numbers`."""
    words = np.zeros(256, dtype=np.int32)
    words[: len(numbers)] = numbers
    return words


def write_checkpoint(tensors: dict[str, np.ndarray], c: dict, path: Path) -> None:
    """The weights of a start file as llm.c reads them: a row per output."""
    vocabulary, width = c["vocab_size"], c["d_model"]
    padded = -(-vocabulary // PADDED) * PADDED
    wte = np.zeros((padded, width), dtype=np.float32)
    wte[:vocabulary] = tensors["param/wte.weight"]
    with path.open("wb") as file:
        shape = (c["block_size"], vocabulary, c["n_layer"], c["n_head"], width, padded)
        header(CHECKPOINT_MAGIC, CHECKPOINT_VERSION, *shape).tofile(file)
        wte.tofile(file)
        tensors["param/wpe.weight"].tofile(file)
        for name in LAYERS:
            for layer in range(c["n_layer"]):
                values = tensors[f"param/h.{layer}.{name}"]
                np.ascontiguousarray(values.T).tofile(file)
        tensors["param/ln_f.weight"].tofile(file)
        tensors["param/ln_f.bias"].tofile(file)


def write_shard(tokens: np.ndarray, path: Path) -> None:
    """Tokens as a shard of llm.c's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        header(SHARD_MAGIC, SHARD_VERSION, len(tokens)).tofile(file)
        tokens.astype(np.uint16).tofile(file)


def prepare(folder: Path, work: Work, torch: Setting, threads: int, via: list[str]) -> None:
    """Makes what llm.c reads, and checks its losses against PyTorch's."""
    trainer = folder / "train_gpt2"
    if not trainer.exists():
        raise SystemExit(f"--llmc {folder}: no train_gpt2 there; build it with `make train_gpt2`")
    path = start_file(work.name)
    c, tensors = start.config(path), load_file(path)
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    write_checkpoint(tensors, c, FOLDER / "gpt2_124M.bin")
    # Its sequences follow one another in the data, so a target at the end of one is the first
    # token of the next.
    batch, length = tensors["tokens"].shape[2:]
    line = np.append(tensors["tokens"][0].ravel(), tensors["targets"][0].ravel()[-1])
    for name in ("train", "val"):
        write_shard(line, FOLDER / "dev/data/tinyshakespeare" / f"tiny_shakespeare_{name}.bin")

    shape = (STEPS, 1, batch, length)
    tensors["tokens"] = np.broadcast_to(line[:-1].reshape(1, 1, batch, length), shape).copy()
    tensors["targets"] = np.broadcast_to(line[1:].reshape(1, 1, batch, length), shape).copy()
    tensors["lrs"] = np.full(STEPS, RATE)
    twin = FOLDER / "start.safetensors"
    save_file(tensors, twin, metadata={"config": json.dumps(c | OPTIMIZER)})
    expected = run_torch(torch, twin, threads, STEPS, via).losses
    twin.unlink()
    found = run(folder, threads, STEPS, via).losses
    worst = max(abs(a / b - 1.0) for a, b in zip(found, expected, strict=True))
    print(f"llm.c: loss {found[0]:.5f} to {found[-1]:.5f} in {STEPS} steps on one batch, which "
          f"differ from PyTorch's on the same by {worst:.1e}")
    if worst > TOLERANCE:
        raise SystemExit(f"--llmc {folder}: it computes something else than PyTorch: {found}")


def run(folder: Path, threads: int, steps: int, via: list[str]) -> Sample:
    """Runs the trainer for `steps` steps, and ends it: at its step 20 it begins to write text."""
    assert steps <= STEPS
    command = [*via, "env", f"OMP_NUM_THREADS={threads}", "stdbuf", "-oL"]
    command.append(str((folder / "train_gpt2").resolve()))
    sample = Sample([], [], 0)
    with subprocess.Popen(command, cwd=FOLDER, stdout=subprocess.PIPE, text=True) as process:
        for words in process.stdout:
            found = re.match(r"step \d+: train loss (\S+) \(took (\S+) ms\)", words)
            if not found:
                continue
            sample.losses.append(float(found[1]))
            sample.seconds.append(float(found[2]) / 1e3)
            if len(sample.losses) == steps:
                below = [process.pid, *children(process.pid)]
                sample.peak_rss = max(peak_rss(pid) for pid in below)
                for pid in below:
                    os.kill(pid, signal.SIGTERM)
                break
    if len(sample.losses) < steps:
        raise SystemExit(f"--llmc {folder}: it ended after {len(sample.losses)} steps")
    return sample


def peak_rss(pid: int) -> int:
    """Largest resident size of a process so far, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 if found else 0


def children(pid: int) -> list[int]:
    """All processes below one."""
    below = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return below + [grandchild for child in below for grandchild in children(child)]
