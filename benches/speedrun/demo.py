"""What demo.sh does once everything is there: see it."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

WORK = Path("target/speedrun-demo")
# Flags of either, which say nothing but which it is. (A seed does not change what a plain run is.)
KINDS = {"tiny": ["--preset", "tiny"], "today": []}


def train(cllm: str, kind: str, seed: int) -> tuple[float, float]:
    """Seconds of one whole process, and the loss of all of its validation tokens, which both have alike."""
    out = WORK / kind
    shutil.rmtree(out, ignore_errors=True)
    begin = time.perf_counter()
    flags = [*KINDS[kind], "--seed", str(seed), "--out-dir", out]
    subprocess.run([cllm, "train", *flags], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - begin
    command = [cllm, "eval", "--checkpoint", max(out.glob("step-*.cllm"), key=lambda path: int(path.stem[5:]))]
    command += ["--data", *sorted((out / "data").glob("val*.bin")), "--batches", "0", "--block-size", "64"]
    told = subprocess.run([*command, "--log-format", "json"], check=True, stdout=subprocess.PIPE, text=True).stdout
    return seconds, json.loads(told.splitlines()[-1])["val_loss"]


def main() -> None:
    cllm, repeats = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 5
    WORK.mkdir(parents=True, exist_ok=True)
    ratios, worse = [], 0
    print("| turn | tiny, s | loss | today, s | loss | of the time |\n|---|---|---|---|---|---|")
    for turn in range(1, repeats + 1):
        done = {kind: train(cllm, kind, turn) for kind in (KINDS if turn % 2 else reversed(KINDS))}
        (before, former), (now, loss) = done["tiny"], done["today"]
        ratios.append(now / before)
        worse += loss > former
        print(f"| {turn} | {before:.2f} | {former:.4f} | {now:.2f} | {loss:.4f} | {ratios[-1]:.3f} |", flush=True)
    print(f"\nmedian {median(ratios):.3f} of the time; worse in {worse} of {repeats}")
    sys.exit(worse > 0 or median(ratios) > 1 / 3)


if __name__ == "__main__":
    main()
