"""Runs one process of one system on one work and says what it did."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from settings import PYTHON, Setting, script
from works import PEERS, Work, start_file, train_command


@dataclass
class Sample:
    """What one process did."""

    # Of each step, from the first.
    seconds: list[float]
    losses: list[float]
    peak_rss: int
    # cllm alone: GFLOP/s of the best multiply-adds, or products of bf16, at its start.
    peak_gflops: float = 0.0

    def tokens_per_s(self, tokens: int, warmup: int) -> float:
        """Speed of the steps after the first `warmup`."""
        timed = self.seconds[warmup:]
        return tokens * len(timed) / sum(timed)


def output(command: list[str | Path], **more) -> str:
    """Standard output of a command; one that fails ends the program with its own words."""
    words = [str(part) for part in command]
    done = subprocess.run(words, capture_output=True, text=True, **more)
    if done.returncode != 0:
        tail = "\n".join(done.stderr.splitlines()[-15:])
        raise SystemExit(f"{' '.join(words)}\nended with {done.returncode}:\n{tail}")
    return done.stdout


def run_cllm(
    cllm: Path, work: Work, dtype: str, threads: int, steps: int, via: list[str]
) -> Sample:
    """One `cllm train`. A step's time is that of its own report: from taking a batch, which
    is made ready while others are trained on, to the update; without logging, and the validation and
    the checkpoint after the last step."""
    out = PEERS / "run"
    shutil.rmtree(out, ignore_errors=True)
    flags = ["--threads", str(threads), "--dtype", dtype]
    lines = output([*via, *train_command(cllm, work, out, steps, *flags)]).splitlines()
    shutil.rmtree(out)
    events = [json.loads(line) for line in lines]
    start = next(event for event in events if event["event"] == "start")
    done = next(event for event in events if event["event"] == "done")
    reported = [event for event in events if event["event"] == "step"]
    return Sample(
        seconds=[start["tokens_per_step"] / step["tokens_per_s"] for step in reported],
        losses=[step["loss"] for step in reported],
        peak_rss=done["peak_rss_bytes"] or 0,
        peak_gflops=start["peak_gflops"],
    )


def run_torch(
    setting: Setting, start: Path, threads: int, steps: int, via: list[str]
) -> Sample:
    """One process of PyTorch on a start file."""
    command = [*via, PYTHON, script("train.py"), start, *setting.flags()]
    command += ["--threads", str(threads), "--steps", str(steps)]
    result = json.loads(output(command, env=setting.environment(threads)).splitlines()[-1])
    return Sample(result["seconds"], result["losses"], result["peak_rss"])


def torch_on(work: Work, setting: Setting, threads: int, steps: int, via: list[str]) -> Sample:
    """One process of PyTorch on a work."""
    return run_torch(setting, start_file(work.name), threads, steps, via)
