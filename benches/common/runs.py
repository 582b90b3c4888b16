"""Runs of `cllm train` in turns: what the scripts of benches/ have in common."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# Folder of the run that is measured: made and removed again.
OUT = Path("target/reference/run")


@dataclass
class Run:
    """What one process reported: its events by their names."""

    events: dict[str, list[dict]]

    @property
    def last(self) -> dict:
        """The last report of steps.

        The first step touches fresh memory and is reported by itself; a report is the mean of
        the steps since the one before. So it is the mean of all but the first, if there are
        no reports between.
        """
        return self.events["step"][-1]

    @property
    def speed(self) -> float:
        """Tokens a second of the last report."""
        return self.last["tokens_per_s"]

    @property
    def done(self) -> dict:
        return self.events["done"][-1]


def train(cllm: str, flags: list, steps: int, report_every: int | None = None) -> Run:
    """Trains for `steps` steps with `flags` and as little else as possible."""
    shutil.rmtree(OUT, ignore_errors=True)
    command = [cllm, "train", *flags, "--max-steps", steps, "--warmup-steps", min(5, steps)]
    command += ["--log-interval", report_every or steps, "--eval-batches", 1]
    # Sizes of blocks as the core has them, whatever the user has stored.
    command += ["--tuning", "off", "--sample-tokens", 0, "--log-format", "json", "--out-dir", OUT]
    run = finished(command)
    shutil.rmtree(OUT)
    return run


def finished(command: list) -> Run:
    """What a `cllm train --log-format json` reported; one that fails ends the program."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(words)}\nended with {done.returncode}:\n{done.stderr}")
    events = {}
    for line in done.stdout.splitlines():
        event = json.loads(line)
        events.setdefault(event["event"], []).append(event)
    return Run(events)


def turns(runs: int, kinds):
    """Number of the turn, and kind, the other way round every second turn: what drifts hits all
    alike."""
    kinds = list(kinds)
    for turn in range(runs):
        for kind in kinds if turn % 2 == 0 else kinds[::-1]:
            yield turn + 1, kind


def note(text: str) -> None:
    """Progress, apart from the table."""
    print(text, file=sys.stderr, flush=True)
