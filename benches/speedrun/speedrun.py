"""What run.sh does once everything is there: see it and README.md."""

import argparse
import gzip
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from statistics import mean, median, stdev

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benches" / "peers" / "pytorch"), str(ROOT / "benches" / "common")]
from measure import output  # noqa: E402
from runs import note  # noqa: E402
from settings import PYTHON, Setting, available  # noqa: E402

CLLM = ROOT / "target" / "release" / "cllm"
WORK = ROOT / "target" / "speedrun"
SHARDS = WORK / "shards"
HERE = Path(__file__).resolve().parent
# What a model's size is.
SIZES = ["n_layer", "n_head", "n_embd", "block_size"]
# The last tenth of a text is what models are measured on.
VAL_SHARE = 0.1
# Student's t for 95 % of both sides, by degrees of freedom.
STUDENT = [12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26]


# Of each work: what ids are, tokens of a sequence, and seconds that a recipe may take.
WORKS = {"characters": ("chars", 64, 8.0), "reference": ("bpe:5000", 128, 10.0)}


def shards(path: Path | None, tokenizer: str) -> None:
    """The training and the validation part of a text as token shards, in SHARDS; of the bundled Bible
    without one."""
    if path is None:
        text = gzip.decompress((ROOT / "runner" / "data" / "bible-kjv.txt.gz").read_bytes())
    else:
        text = path.read_bytes()
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    cut = len(text) - int(len(text) * VAL_SHARE)
    parts = WORK / "train.txt", WORK / "val.txt"
    for part, of_text in zip(parts, (text[:cut], text[cut:])):
        part.write_bytes(of_text)
    command = [CLLM, "tokenize", "--data", parts[0], "--val-data", parts[1]]
    output([*command, "--tokenizer", tokenizer, "--out", SHARDS])


def flags_of(args: argparse.Namespace, seed: int, more: list[str]) -> list[str]:
    """What `cllm train` is told for the recipe. A word of one dash leaves a line of the recipe out: `-momentum`."""
    dropped = {word[1:] for word in more if word[:1] == "-" and word[:2] != "--"}
    more = [word for word in more if word[1:] not in dropped]
    lines = args.recipe.read_text().splitlines(keepends=True)
    recipe = WORK / "recipe.toml"
    recipe.write_text("".join(line for line in lines if line.split(" =")[0] not in dropped))
    flags = ["--config", recipe, "--data", SHARDS, "--seed", seed, "--threads", args.threads]
    if args.steps:
        flags += ["--max-steps", args.steps]
    return [*flags, *args.flags, *more]


def train(flags: list[str], block: int) -> tuple[float, float]:
    """One `cllm train`: seconds of the whole process, from opening the shards to the last checkpoint, and the loss of
    all validation tokens."""
    out = WORK / "run"
    shutil.rmtree(out, ignore_errors=True)
    command = [CLLM, "train", *flags, "--out-dir", out]
    # A last validation of one batch: the loss that counts is measured below, as the baseline's is.
    command += ["--eval-interval", 1_000_000, "--eval-batches", 1, "--sample-tokens", 0, "--quiet"]
    begin = time.perf_counter()
    output(command)
    seconds = time.perf_counter() - begin
    loss = evaluate(out, block)
    shutil.rmtree(out)
    return seconds, loss


def evaluate(run: Path, block: int) -> float:
    """Mean loss of all whole windows of the validation tokens, one behind the other."""
    last = max(run.glob("step-*.cllm"), key=lambda path: int(path.stem.split("-")[1]))
    command = [CLLM, "eval", "--checkpoint", last, "--data", *sorted(SHARDS.glob("val*.bin"))]
    command += ["--batches", 0, "--block-size", block, "--dtype", "f32", "--log-format", "json"]
    return json.loads(output(command).splitlines()[-1])["val_loss"]


def baseline(setting: Setting, seed: int, seconds: float, args: argparse.Namespace, more: list = ()) -> dict:
    """One process of PyTorch."""
    command = [PYTHON, HERE / "baseline.py", SHARDS, args.work, *setting.flags()]
    command += ["--seconds", seconds, "--seed", seed, "--threads", args.threads, *more]
    environment = setting.environment(args.threads)
    return json.loads(output(command, env=environment).splitlines()[-1])


def fastest(args: argparse.Namespace) -> tuple[Setting, float]:
    """The setting of PyTorch that does the most steps in ten seconds, and how many it does in one."""
    settings, missing = available(["eager", "compiled"])
    for text in missing:
        note(text)
    speeds = {}
    for setting in settings:
        done = baseline(setting, 1, 10, args)
        speeds[setting] = done["steps"] / done["seconds"]
        note(f"{setting.name}: {speeds[setting]:.1f} steps/s")
    best = max(speeds, key=speeds.get)
    return best, speeds[best]


def interval(values: list[float]) -> float:
    """Half of the 95 % interval of the mean."""
    degrees = min(len(values) - 1, len(STUDENT))
    return STUDENT[degrees - 1] * stdev(values) / math.sqrt(len(values)) if degrees else math.nan


def compare(args: argparse.Namespace) -> None:
    """PyTorch for some seconds, and the recipe for its steps, in turns."""
    (setting, speed), (_, block, allowed) = fastest(args), WORKS[args.work]
    # A schedule that ends within its time, also where the machine is a little slower then; nanoGPT's is as it is.
    more = ["--steps", int(0.95 * speed * args.seconds)] if args.work == "reference" else []
    rows = []
    for seed in range(1, args.seeds + 1):
        kinds = ["torch", "cllm"] if seed % 2 else ["cllm", "torch"]
        for kind in kinds:
            if kind == "torch":
                theirs = baseline(setting, seed, args.seconds, args, more)
            else:
                ours = train(flags_of(args, seed, []), block)
        rows.append((theirs, ours))
        note(f"seed {seed}: PyTorch {theirs['loss']:.4f} in {theirs['seconds']:.1f} s ({theirs['steps']} steps); "
             f"cllm {ours[1]:.4f} in {ours[0]:.2f} s")
    print(f"PyTorch: {setting.name}, {args.threads} threads; cllm: {args.recipe.name} {' '.join(args.flags)}\n")
    print("| seed | PyTorch, steps | s | loss | cllm, s | loss | as good | times faster |")
    print("|---|---|---|---|---|---|---|---|")
    for seed, (theirs, (seconds, loss)) in enumerate(rows, 1):
        good = "yes" if loss <= theirs["loss"] else "no"
        print(f"| {seed} | {theirs['steps']} | {theirs['seconds']:.1f} | {theirs['loss']:.4f} | {seconds:.2f} "
              f"| {loss:.4f} | {good} | {theirs['seconds'] / seconds:.2f} |")
    worst = sum(loss > theirs["loss"] for theirs, (_, loss) in rows)
    ratio = median(theirs["seconds"] / seconds for theirs, (seconds, _) in rows)
    seconds = median(ours[0] for _, ours in rows)
    print(f"\nmedian {ratio:.2f} times faster, {seconds:.2f} s of {allowed:g} allowed; "
          f"worse than PyTorch's loss in {worst} of {len(rows)}")
    sys.exit(worst > 0 or seconds > allowed)


def tune(args: argparse.Namespace) -> None:
    """PyTorch's loss after its time by batch and rate, with a schedule as long as its time."""
    setting, _ = fastest(args)
    print("| sequences | rate | steps | loss |\n|---|---|---|---|")
    for batch in args.batches:
        done = baseline(setting, 1, 10, args, ["--batch", batch])
        steps = int(done["steps"] / done["seconds"] * args.seconds)
        for rate in args.rates:
            flags = ["--batch", batch, "--rate", rate, "--steps", steps]
            done = baseline(setting, 1, args.seconds, args, flags)
            print(f"| {batch} | {rate:g} | {done['steps']} | {done['loss']:.4f} |", flush=True)


def tokens(args: argparse.Namespace) -> None:
    """The recipe beside AdamW on twice its tokens, with GPT-2's parts in a model of its size: AdamW's batch and rate are the
    best of all that are tried with the first seed."""
    block = WORKS[args.work][1]
    recipe = tomllib.loads(args.recipe.read_text())
    limit = 2 * recipe["batch_size"] * (args.steps or recipe["max_steps"]) * block
    sizes = [[f"--{name.replace('_', '-')}", recipe[name]] for name in SIZES]
    given = [*sum(sizes, []), "--tied", "true", "--bias", "false", "--dropout", 0, "--beta2", args.beta2,
             "--weight-decay", 0.1, "--lr-schedule", "linear", "--min-lr", 0, "--data", SHARDS]

    def adamw(batch: int, rate: float, seed: int) -> float:
        steps = limit // (batch * block)
        flags = ["--batch-size", batch, "--learning-rate", rate, "--max-steps", steps]
        flags += ["--warmup-steps", steps // 10, "--seed", seed, "--threads", args.threads, "--dtype", "bf16"]
        return train([*given, *flags], block)[1]

    print(f"AdamW, {limit:,} tokens\n\n| sequences | rate | loss |\n|---|---|---|")
    tried = {}
    for batch in args.batches:
        for rate in args.rates:
            tried[batch, rate] = adamw(batch, rate, 1)
            print(f"| {batch} | {rate:g} | {tried[batch, rate]:.4f} |", flush=True)
    best = min(tried, key=tried.get)
    print(f"\n{args.recipe.name}, {limit // 2:,} tokens, beside the best of these\n")
    print("| seed | AdamW | the recipe |\n|---|---|---|")
    pairs = []
    for seed in range(1, args.seeds + 1):
        theirs = tried[best] if seed == 1 else adamw(*best, seed)
        pairs.append((theirs, train(flags_of(args, seed, []), block)[1]))
        print(f"| {seed} | {pairs[-1][0]:.4f} | {pairs[-1][1]:.4f} |", flush=True)
    apart = [ours - theirs for theirs, ours in pairs]
    worse = sum(value > 0 for value in apart)
    print(f"\n{mean(apart):+.4f} in the mean, 95 % {interval(apart):.4f}; worse in {worse} of {len(pairs)}")
    sys.exit(worse > 0)


def ablate(args: argparse.Namespace) -> None:
    """The recipe as it is, and once with each of some flags besides, for several seeds."""
    kinds = ["", *args.without]
    losses, times = {kind: [] for kind in kinds}, {kind: [] for kind in kinds}
    for seed in range(1, args.seeds + 1):
        for kind in kinds if seed % 2 else kinds[::-1]:
            flags = flags_of(args, seed, shlex.split(kind))
            seconds, loss = train(flags, WORKS[args.work][1])
            losses[kind].append(loss)
            times[kind].append(seconds)
            note(f"seed {seed} {kind or 'as it is'}: {loss:.4f} in {seconds:.2f} s")
    print(f"{args.recipe.name} {' '.join(args.flags)}, {args.seeds} seeds\n")
    print("| with | loss | 95 % | against the recipe, seed by seed | 95 % | s |\n|---|---|---|---|---|---|")
    for kind in kinds:
        apart = [a - b for a, b in zip(losses[kind], losses[""])]
        print(f"| {kind or 'as it is'} | {mean(losses[kind]):.4f} | {interval(losses[kind]):.4f} "
              f"| {mean(apart):+.4f} | {interval(apart):.4f} | {median(times[kind]):.2f} |")


MODES = {"compare": compare, "ablate": ablate, "tokens": tokens, "tune": tune}


def main() -> None:
    parser = argparse.ArgumentParser(prog="run.sh", description=__doc__.splitlines()[0])
    parser.add_argument("mode", nargs="?", choices=MODES, default="compare")
    parser.add_argument("--text", type=Path, help="a text of characters [default: the bundled Bible]")
    parser.add_argument("--work", choices=WORKS, default="characters")
    parser.add_argument("--recipe", type=Path, help="settings of cllm train [default: the work's]")
    parser.add_argument("--steps", type=int, help="steps of the recipe [default: its own]")
    parser.add_argument("--flags", type=shlex.split, default=[], help="more flags for cllm train")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60, help="time that PyTorch has")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--without", action="append", default=[], help="flags to ablate")
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 8, 16], help="sequences that AdamW is tried with")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3, 8e-3], help="its rates")
    parser.add_argument("--beta2", type=float, default=0.99, help="of AdamW's")
    args = parser.parse_args()
    # Tokens are compared at one size of models, and those that are counted in the text are tokens too.
    at_one_size = args.mode == "tokens" and args.work == "reference"
    args.recipe = args.recipe or HERE / ("tied.toml" if at_one_size else f"{args.work}.toml")
    shards(args.text, WORKS[args.work][0])
    MODES[args.mode](args)


if __name__ == "__main__":
    main()
