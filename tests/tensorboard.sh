#!/usr/bin/env bash
# Trains with --tensorboard, kills the run and resumes it, reads the files with TensorBoard itself, and
# compares every figure with metrics.jsonl. Ends with an error if one differs.
#
# Usage: tests/tensorboard.sh
#
# Needs Rust and Python 3.11 or newer with venv and pip, which install TensorBoard into
# target/tensorboard. PYTHON names a Python that has it instead.
set -euo pipefail
cd "$(dirname "$0")/.."
work=target/tensorboard
mkdir -p "$work"
if [ -z "${PYTHON:-}" ]; then
    PYTHON=$work/venv/bin/python
    if ! "$PYTHON" -c 'import tensorboard' 2> /dev/null; then
        python3 -m venv --clear "$work/venv"
        "$work/venv/bin/pip" install --quiet tensorboard==2.20.0 'setuptools<81'
    fi
fi
cargo build --quiet --locked --release --package cllm
exec "$PYTHON" - target/release/cllm "$work" <<'PYTHON'
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

cllm, work = sys.argv[1], Path(sys.argv[2])
run, text = work / "run", work / "text.txt"
STEPS = 300
TAGS = {
    "loss/train": "loss", "learning_rate": "lr", "grad_norm": "grad_norm",
    "speed/tokens_per_s": "tokens_per_s", "speed/share_of_peak": "mfu",
    "speed/data_wait_s": "data_wait", "loss/validation": "val_loss",
}
shutil.rmtree(run, ignore_errors=True)
text.write_text("In the beginning was the word.\n" * 2000)
command = [cllm, "train", "--data", text, "--out-dir", run, "--n-layer", 2, "--n-embd", 64]
command += ["--n-head", 2, "--block-size", 64, "--batch-size", 8, "--max-steps", STEPS, "--quiet"]
command += ["--tensorboard", "--log-interval", 1, "--eval-interval", 20, "--save-interval", 50]
command = list(map(str, command))
metrics = run / "metrics.jsonl"


def lines() -> list[dict]:
    return [json.loads(line) for line in metrics.read_text().splitlines()]


def last_step() -> int:
    steps = [0]
    if metrics.exists():
        # The last line may be half written.
        for line in metrics.read_text().splitlines()[:-1]:
            steps.append(json.loads(line).get("step") or 0)
    return max(steps)


first = subprocess.Popen(command, stdout=subprocess.PIPE)
# Between two checkpoints, which validations make too.
while not (last_step() > 110 and 5 <= last_step() % 20 <= 12):
    if first.poll() is not None:
        sys.exit("the run ended before it could be killed")
    time.sleep(0.002)
first.send_signal(signal.SIGKILL)
if first.communicate()[0]:
    sys.exit("--quiet printed something")
killed_at = last_step()
said = subprocess.run([*command, "--resume"], check=True, capture_output=True)
if said.stdout or said.stderr:
    sys.exit(f"--quiet printed {said.stdout!r} {said.stderr!r}")
resumed_at = max(line["step"] for line in lines() if line["event"] == "start")
if killed_at <= resumed_at:
    sys.exit(f"killed at step {killed_at}, resumed at {resumed_at}: nothing was done again")

board = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
board.Reload()
if sorted(board.Tags()["scalars"]) != sorted(TAGS):
    sys.exit(f"TensorBoard has {board.Tags()['scalars']}")
figures = 0
for tag, key in TAGS.items():
    wanted = [(line["step"], line[key]) for line in lines() if line["event"] in ("step", "eval") and key in line]
    found = [(event.step, event.value) for event in board.Scalars(tag)]
    if [(step, np.float32(value)) for step, value in wanted] != [(s, np.float32(v)) for s, v in found]:
        sys.exit(f"{tag}: {len(found)} figures, metrics.jsonl has {len(wanted)}; {found[:3]} {wanted[:3]}")
    figures += len(found)
files = len(list((run / "tensorboard").iterdir()))
print(f"TensorBoard has the {figures} figures of metrics.jsonl, from {files} files of a run of {STEPS} steps "
      f"that was killed at step {killed_at} and resumed at {resumed_at}")
PYTHON
