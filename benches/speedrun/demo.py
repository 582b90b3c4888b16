"""What demo.sh does once everything is there: see it."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

WORK = Path("target/speedrun-demo")
# Flags of either, which say nothing but which it is.
KINDS = {"tiny": ["--preset", "tiny"], "today": []}


def train(cllm: str, kind: str) -> tuple[float, float]:
    """Seconds of one whole process, and its last validation loss."""
    out = WORK / kind
    shutil.rmtree(out, ignore_errors=True)
    begin = time.perf_counter()
    subprocess.run([cllm, "train", *KINDS[kind], "--out-dir", out], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - begin
    events = (json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines())
    losses = [event["val_loss"] for event in events if event["event"] == "eval"]
    return seconds, losses[-1]


def main() -> None:
    cllm, repeats = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 5
    WORK.mkdir(parents=True, exist_ok=True)
    ratios, worse = [], 0
    print("| turn | tiny, s | loss | today, s | loss | of the time |\n|---|---|---|---|---|---|")
    for turn in range(1, repeats + 1):
        done = {kind: train(cllm, kind) for kind in (KINDS if turn % 2 else reversed(KINDS))}
        (before, former), (now, loss) = done["tiny"], done["today"]
        ratios.append(now / before)
        worse += loss > former
        print(f"| {turn} | {before:.2f} | {former:.4f} | {now:.2f} | {loss:.4f} | {ratios[-1]:.3f} |", flush=True)
    print(f"\nmedian {median(ratios):.3f} of the time; worse in {worse} of {repeats}")
    sys.exit(worse > 0)


if __name__ == "__main__":
    main()
