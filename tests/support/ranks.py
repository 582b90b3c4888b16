"""What tests/ranks.sh does. Usage: ranks.py CLLM FOLDER KILLS|speed RUNS"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

CLLM, FOLDER, RUNS = sys.argv[1], Path(sys.argv[2]), int(sys.argv[4])
ONLY_SPEED = sys.argv[3] == "speed"
KILLS = 0 if ONLY_SPEED else int(sys.argv[3])
# Long enough to be killed in, with a checkpoint every few steps, validations, dropout and a clip.
SMALL = """--tokenizer bytes --n-layer 2 --n-head 2 --n-embd 64 --block-size 64 --batch-size 8
    --gradient-accumulation-steps 2 --batch-parts 4 --max-steps 240 --warmup-steps 10 --eval-interval 40 --eval-batches 4
    --save-interval 10 --dropout 0.1 --sample-tokens 0 --threads 1 --tuning off --log-format json""".split()


def fail(why):
    sys.exit(f"tests/ranks.sh: {why}")


def command(ranks, flags, run):
    mpirun = ["mpirun", "-n", str(ranks)] if ranks else []
    return [*mpirun, CLLM, "train", *flags, "--out-dir", str(FOLDER / run)]


def train(ranks, flags, run):
    """Trains to the end; what the run said when it was done."""
    ended = subprocess.run(command(ranks, flags, run), capture_output=True, text=True)
    (FOLDER / f"{run}.log").write_text(ended.stdout + ended.stderr)
    if ended.returncode:
        fail(f"{run} on {ranks} ranks: exit code {ended.returncode}: {ended.stderr[-1500:]}")
    return done(run)


def events(run, kind):
    lines = (FOLDER / run / "metrics.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def done(run):
    found = events(run, "done")
    if len(found) != 1:
        fail(f"{run}: {len(found)} ends")
    return found[0]


def same_weights():
    """On any number of ranks, for every optimizer; the weights of AdamW."""
    expected = None
    for optimizer in ["adamw", "adamw8", "momentum", "sgd", "muon"]:
        # 0 is a process that mpirun has not started.
        for ranks in [0, 1, 2, 4] if optimizer == "adamw" else [1, 2, 4]:
            run = f"{optimizer}-{ranks}"
            flags = [*SMALL, "--optimizer", optimizer]
            if optimizer in ("momentum", "sgd"):
                flags += ["--learning-rate", "0.1", "--weight-decay", "0"]
            if optimizer == "muon":
                flags += ["--bigram-init", "--tied", "false", "--norm", "rms"]
            of = train(ranks, flags, run)
            print(f"{optimizer:<9} {ranks or 'no'} ranks  {of['weights_sha256']}  loss {of['val_loss']:.6f}", flush=True)
            if ranks == (0 if optimizer == "adamw" else 1):
                first = of
            if (of["weights_sha256"], of["val_loss"]) != (first["weights_sha256"], first["val_loss"]):
                fail("the weights depend on the number of ranks")
            expected = expected or of
    return expected


def stopped(expected):
    """One rank is told to stop: all stop behind a step, and others go on."""
    mpirun = subprocess.Popen(command(4, SMALL, "stopped"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(steps("stopped")) > 5, "the run takes no steps")
    os.kill(children(mpirun.pid)[1], signal.SIGTERM)
    mpirun.wait()
    at = events("stopped", "interrupted")
    if not at:
        fail("a run that was told to stop has not saved")
    again = train(2, [*SMALL, "--resume"], "stopped")
    if again["weights_sha256"] != expected["weights_sha256"]:
        fail("stopped on 4 ranks and resumed on 2 the weights are others")
    print(f"stopped on 4 ranks behind step {at[0]['step']}, resumed on 2: the same weights", flush=True)


def steps(run):
    try:
        return events(run, "step")
    except (FileNotFoundError, json.JSONDecodeError):
        return []


def wait_for(what, why, seconds=120):
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            fail(why)
        time.sleep(0.02)


def children(pid):
    """Processes of the program below mpirun's."""
    found, todo = [], [pid]
    while todo:
        parent = todo.pop()
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            todo += [int(child) for child in task.read_text().split()]
        try:
            if os.readlink(f"/proc/{parent}/exe") == os.path.realpath(CLLM):
                found.append(parent)
        except OSError:
            pass
    return sorted(found)


def killed(expected, dice):
    """A rank is killed at a random time, until the run is done all the same; how often that was."""
    kills, rounds, told, begun = 0, 0, 0, 0
    while kills < KILLS:
        run, rounds, resume = f"killed-{rounds}", rounds + 1, []
        while True:
            ranks = dice.choice([2, 4])
            log = open(FOLDER / f"{run}.log", "a")
            said = log.tell()
            mpirun = subprocess.Popen(command(ranks, [*SMALL, *resume], run), stdout=subprocess.DEVNULL, stderr=log)
            at = time.monotonic() + dice.uniform(0.1, 5.0)
            while kills < KILLS and mpirun.poll() is None and time.monotonic() < at:
                time.sleep(0.01)
            victims = children(mpirun.pid) if mpirun.poll() is None and kills < KILLS else []
            if not victims:
                if mpirun.wait() != 0:
                    fail(f"{run}: a session that nobody disturbed has ended with an error, see {run}.log")
                break
            rank = dice.randrange(len(victims))
            before = ([0] + [step["step"] for step in steps(run)])[-1]
            os.kill(victims[rank], signal.SIGKILL)
            kills += 1
            try:
                code = mpirun.wait(timeout=60)
            except subprocess.TimeoutExpired:
                mpirun.kill()
                fail(f"{run}: a rank was killed, and the others go on")
            if code == 0:
                fail(f"{run}: a rank was killed, and mpirun says that all is well")
            wait_for(lambda: not any(map(alive, victims)), "a rank outlives the others")
            begun += before > 0
            told += "--resume" in (FOLDER / f"{run}.log").read_text()[said:]
            print(f"kill {kills}: rank {rank} of {len(victims)} behind step {before}, exit code {code}", flush=True)
            resume = ["--resume"] if (FOLDER / run / "settings.json").exists() else []
        of = done(run)
        if (of["weights_sha256"], of["val_loss"]) != (expected["weights_sha256"], expected["val_loss"]):
            fail(f"{run}: killed and resumed the weights are others")
        if [step["step"] for step in steps(run)] != [step["step"] for step in steps("adamw-0")]:
            fail(f"{run}: metrics.jsonl has not every step once")
        print(f"{run}: the same weights", flush=True)
    print(f"behind {told} of {kills} kills the others said how to go on")
    if begun and not told:
        fail("ranks that are ended do not say how to go on")


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


def speed(ranks, run):
    """Tokens a second: the median over steps."""
    flags = """--preset reference --tokenizer bytes --vocab-size 5000 --batch-parts 4 --max-steps 14 --log-interval 1
        --eval-batches 1 --sample-tokens 0 --threads 1 --log-format json""".split()
    of = train(ranks, flags, run)
    return median(step["tokens_per_s"] for step in steps(run)[2:]), of


def cost():
    """The fixed order of additions beside that of MPI's own choice."""
    for ranks in [2, 4]:
        bench = ["mpirun", "-n", str(ranks), CLLM, "bench", "ranks"]
        print(subprocess.run(bench, check=True, capture_output=True, text=True).stdout, end="", flush=True)


def measured():
    """Two ranks of a thread beside one, in turns."""
    if len(os.sched_getaffinity(0)) < 2:
        print("not measured: there is one CPU")
        return
    ratios, hashes = [], set()
    for n in range(RUNS):
        order = [1, 2] if n % 2 == 0 else [2, 1]
        of = {ranks: speed(ranks, f"speed-{n}-{ranks}") for ranks in order}
        hashes |= {done["weights_sha256"] for _, done in of.values()}
        ratios.append(of[2][0] / of[1][0])
        took = of[2][1]["exchange"]
        print(
            f"reference, 1 rank {of[1][0]:.0f} tokens/s, 2 ranks {of[2][0]:.0f}: {ratios[-1]:.3f}; gradients {took['gradients']:.3f} s, "
            f"{took['hidden']:.0%} hidden, weights {took['weights']:.3f} s, of {of[2][1]['step_seconds']:.1f} s",
            flush=True,
        )
    if len(hashes) != 1:
        fail("the weights depend on the number of ranks")
    print(f"2 ranks of 1 thread over 1 rank of 1 thread: {median(ratios):.3f}")
    if median(ratios) < 1.85:
        fail("2 ranks are to be at least 1.85 times as fast as 1")


if __name__ == "__main__":
    if ONLY_SPEED:
        measured()
        cost()
        sys.exit()
    expected = same_weights()
    stopped(expected)
    seed = int(os.environ.get("SEED", time.time_ns() % 100_000))
    print(f"SEED={seed}")
    killed(expected, random.Random(seed))
    if RUNS:
        measured()
        cost()
    print("all is well")
