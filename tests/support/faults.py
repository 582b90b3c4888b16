"""Disturbs runs of `cllm train` at random moments, and looks at what becomes of them.

Called by tests/faults.sh, which says what is wanted: faults.py CLLM WORK [FAULTS] [SEED]

A run is some sessions of one training. In all but the last something is done to it (faults_kinds.py has what).
After each session the checkpoints that nobody has touched must be whole and have the weights and moments of the
undisturbed run after the same step; none may have got lost; the end of the run must have its weights.
"""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import faults_kinds as kinds  # noqa: E402
import faults_run as runs  # noqa: E402
from faults_run import BAD, CASES, Bad, Run, Session, content  # noqa: E402

CLLM, WORK = os.path.abspath(sys.argv[1]), Path(sys.argv[2]).resolve()
FAULTS = int(sys.argv[3]) if len(sys.argv) > 3 else 1000
SEED = int(sys.argv[4]) if len(sys.argv) > 4 else random.SystemRandom().randrange(1 << 32)
# Sessions of a run that are disturbed, at most.
MOST_FAULTS = 9


def make_good(at: Path) -> None:
    """What runs are trained on: text, token shards, instructions, and a model to go on from."""
    rng = random.Random(1)
    words = "".join(rng.choice("abcdefghiklmnoprstuvwyäéß") * (rng.random() < 0.9) for _ in range(4000))
    words = [words[i : i + rng.randint(2, 8)] for i in range(0, len(words), 5)]
    lines = [" ".join(rng.choices(words, k=9)) + ".\n" for _ in range(1500)]
    (at / "text.txt").write_text("".join(lines))
    pairs = [{"prompt": line[:20], "completion": line[20:50]} for line in lines[:400]]
    (at / "examples.jsonl").write_text("".join(json.dumps(one) + "\n" for one in pairs))

    def run(*args) -> None:
        subprocess.run([CLLM, *map(str, args)], check=True, stdout=subprocess.DEVNULL)

    run("tokenize", "--data", at / "text.txt", "--tokenizer", "bpe:300", "--shard-tokens", 9000, "--out", at / "shards")
    model = "--n-layer 1 --n-embd 32 --n-head 2 --block-size 32 --max-steps 10 --warmup-steps 1 --quiet".split()
    model += "--sample-tokens 0 --threads 1 --tuning off --tokenizer bpe:300".split()
    run("train", "--data", at / "text.txt", *model, "--out-dir", at / "base")


def undisturbed(name: str) -> dict:
    """Trains to the end: the weights of each step that is saved, those of the end, and how long it takes."""
    run = Run(CLLM, WORK, WORK / "reference" / name, name, {})
    session = Session(run, "reference", keep=100_000)
    begin, left = time.monotonic(), session.left
    code = session.wait()
    if code != 0:
        sys.exit(f"{name}: an undisturbed run ends with {code}: {session.said()}")
    # Without the time in which somebody has stopped it.
    seconds = min(time.monotonic() - begin, left - session.left + 0.5)
    known = {"sha": run.done(), "seconds": seconds, "sums": {}, "memory": session.peak(), "loaded": session.loaded()}
    for path in run.checkpoints():
        step, sums = content(path.read_bytes())
        known["sums"][step] = sums
    run.known = known
    run.verify()
    if run.has("spikes") and b'"event":"spike"' not in (run.dir / "metrics.jsonl").read_bytes():
        sys.exit(f"{name}: it has none")
    run.close(keep=False)
    return known


def disturbed(job: tuple) -> dict:
    """One run to its end, with what was done to it and how each fault ended."""
    number, references = job
    rng = random.Random(f"{SEED}/{number}")
    name = rng.choice(sorted(CASES))
    run = Run(CLLM, WORK, WORK / f"run-{number}", name, references[name], rng)
    faults, wanted = [], rng.randint(3, MOST_FAULTS)
    report = {"run": number, "case": name, "faults": faults, "bad": None}
    try:
        while len(faults) < wanted:
            kind = kinds.choose(rng, run)
            run.log(f"fault {len(faults)}: {kind.name}")
            try:
                ended = kind.inflict(run, rng)
            except Bad:
                faults.append([kind.name, None])
                raise
            if ended is None:
                run.log("the run was over before")
                break
            faults.append(list(ended))
            if run.done():
                break
        run.finish()
    except Bad as bad:
        # The last fault is at fault.
        faults[-1][1] = bad.what
        report["bad"] = f"{bad.what}: {bad}"
        run.log(report["bad"])
    run.close(keep=report["bad"] is not None)
    return report


def main() -> None:
    begin = time.monotonic()
    only = os.environ.get("RUN")
    shutil.rmtree(WORK, ignore_errors=True)
    (WORK / "good").mkdir(parents=True)
    jobs = int(os.environ.get("JOBS", 0)) or max(1, (os.cpu_count() or 1) // 2)
    print(f"seed {SEED}; {jobs} run(s) at a time", flush=True)
    kinds.READ_ONLY, runs.SMALL_DISKS = runs.read_only_works(WORK), runs.mounts(WORK)
    left_out = []
    for what, works in (("small disks", runs.SMALL_DISKS), ("read-only modes", kinds.READ_ONLY)):
        print(f"{what}: {'yes' if works else 'no, left out'}", flush=True)
        left_out += [] if works else [what]
    make_good(WORK / "good")
    with multiprocessing.Pool(jobs) as pool:
        references = dict(zip(sorted(CASES), pool.map(undisturbed, sorted(CASES), 1)))
    for name, known in references.items():
        print(f"  {name:<28} {known['seconds']:5.1f} s undisturbed, {len(known['sums'])} checkpoints, {known['sha'][:16]}")
    numbers = iter([int(only)]) if only else iter(range(1 << 30))
    reports, count, told, asked = [], 0, 0, []
    # Asked to end, it ends the runs that have begun, and says what became of them.
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    with multiprocessing.Pool(jobs, maxtasksperchild=20) as pool:
        running = []
        while running or (count < FAULTS and not asked):
            while len(running) < jobs and count < FAULTS and not asked:
                number = next(numbers, None)
                if number is None:
                    break
                running.append(pool.apply_async(disturbed, ((number, references),)))
            if not running:
                break
            done = [one for one in running if one.ready()]
            running = [one for one in running if not one.ready()]
            for one in done:
                report = one.get()
                reports.append(report)
                count += len(report["faults"])
                if report["bad"]:
                    print(f"run {report['run']} ({report['case']}): {report['bad']}\n  look at {WORK}/run-{report['run']}", flush=True)
            if count - told >= 50:
                told = count
                print(f"  {count} faults, {len(reports)} runs, {time.monotonic() - begin:.0f} s", flush=True)
            time.sleep(0.02)
    failed = table(reports)
    print(f"{count} faults in {len(reports)} runs, seed {SEED}, {(time.monotonic() - begin) / 60:.0f} minutes"
          + (f"; this machine has left out {' and '.join(left_out)}" if left_out else ""))
    (WORK / "reports.json").write_text(json.dumps(reports, indent=1))
    sys.exit(1 if failed else 0)


def table(reports: list) -> int:
    """Prints what became of all faults; how many ended badly."""
    columns = ["went on", "resumed", *BAD]
    rows = {}
    for report in reports:
        for name, ended in report["faults"]:
            rows.setdefault(name, dict.fromkeys(columns, 0))[ended] += 1
    heads = ["faults", "went on to\nsame hash", "clear error,\nmended, same", *(f"\n{bad}" for bad in BAD)]
    heads = [head if "\n" in head else f"\n{head}" for head in heads]
    print()
    for line in range(2):
        print(f"{'' if line == 0 else 'kind':<34}" + "".join(f"{head.split(chr(10))[line]:>14}" for head in heads))
    total = dict.fromkeys(columns, 0)
    for name, row in sorted(rows.items()):
        print(f"{name:<34}{sum(row.values()):>14}" + "".join(f"{row[column]:>14}" for column in columns))
        total = {column: total[column] + row[column] for column in columns}
    print(f"{'all':<34}{sum(total.values()):>14}" + "".join(f"{total[column]:>14}" for column in columns))
    return sum(total[bad] for bad in BAD)


if __name__ == "__main__":
    main()
