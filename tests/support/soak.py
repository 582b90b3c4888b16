"""Trains for a long time with kills, and watches memory, open files and throughput.

Called by tests/soak.sh, which says what is compared: soak.py CLLM WORK [MINUTES]
"""

import atexit
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

CLLM, WORK = os.path.abspath(sys.argv[1]), Path(sys.argv[2]).resolve()
SECONDS = 60 * float(sys.argv[3]) if len(sys.argv) > 3 else 3600.0
KILLS = 10
# Growth of memory and drift of throughput that are faults, and the share of a CPU that others may have in a window.
MOST_GROWTH, MOST_DRIFT, MOST_OTHERS = 0.01, 0.03, 0.05
TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
TOKENS = 16 * 64
# Steps between checkpoints, and windows that a control is watched for.
SAVE, CONTROL = 500, 6


class Window:
    """What was seen over some seconds of a session."""

    def __init__(self, at: float, session: int, steps: int, wall: float, cpu: float, others: float, memory: int, files: int):
        self.at, self.session, self.memory, self.files = at, session, memory, files
        self.by_clock, self.by_cpu = steps * TOKENS / wall, steps * TOKENS / max(cpu, 1e-9)
        self.is_quiet = others < MOST_OTHERS * wall


def busy() -> float:
    """CPU seconds that the machine has worked."""
    with open("/proc/stat") as stat:
        fields = [int(field) for field in stat.readline().split()[1:]]
    # All but idle and waiting for disks; guests are counted in user time.
    return (sum(fields[:8]) - fields[3] - fields[4]) / TICK


def of_process(pid: int) -> tuple:
    """CPU seconds, resident bytes and open files of a process."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(") ")[2].split()
    with open(f"/proc/{pid}/statm") as statm:
        resident = int(statm.read().split()[1]) * PAGE
    return (int(fields[11]) + int(fields[12])) / TICK, resident, len(os.listdir(f"/proc/{pid}/fd"))


def step_of(run: Path, events: tuple = ("start", "step"), most: int = 1 << 16) -> int:
    """The step of the last of these events that the run has reported, among the last bytes of the file."""
    with open(run / "metrics.jsonl", "rb") as metrics:
        metrics.seek(0, 2)
        metrics.seek(max(0, metrics.tell() - most))
        lines = metrics.read().split(b"\n")[:-1]
    for line in reversed(lines):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if event.get("event") in events:
            return event["step"]
    return 0


def settled(windows: list) -> list:
    """Without the first third, which is warm-up."""
    return windows[len(windows) // 3 :]


def session(number: int, run: Path, begin: float, until: float, wait: float, controls: list, every: float) -> list:
    """Trains until then, and ends it: the windows that were seen. Controls are appended."""
    args = ["train", "--out-dir", str(run), "--quiet"]
    if number == 0:
        args += ["--data", str(WORK / "text.txt"), "--tokenizer", "bytes", "--n-layer", "2", "--n-embd", "64", "--n-head", "2",
                 "--block-size", "64", "--batch-size", "16", "--max-steps", "1000000000", "--lr-schedule", "constant",
                 "--save-interval", str(SAVE), "--eval-interval", "2000", "--log-interval", "10", "--sample-tokens", "0",
                 "--tuning", "off", "--threads", os.environ.get("THREADS", "1")]
    else:
        args.append("--resume")
    before = step_of(run) if number else 0
    child = subprocess.Popen([CLLM, *args], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    atexit.register(child.kill)
    windows, last, control = [], None, time.monotonic() + every / 2
    while time.monotonic() < until:
        time.sleep(min(wait, max(0.0, until - time.monotonic())))
        if child.poll() is not None:
            sys.exit(f"session {number} ended by itself with {child.returncode}: {child.stderr.read()}")
        if not (run / "metrics.jsonl").exists():
            continue
        if time.monotonic() >= control:
            # A run that has just begun, in the place of this one: what slows down both is not this one's age.
            child.send_signal(signal.SIGSTOP)
            shutil.rmtree(WORK / "control", ignore_errors=True)
            end = time.monotonic() + CONTROL * wait
            controls += settled(session(0, WORK / "control", begin, end, wait, [], float("inf")))
            child.send_signal(signal.SIGCONT)
            control, last = time.monotonic() + every, None
            continue
        now, step, machine = time.monotonic(), step_of(run), busy()
        cpu, memory, files = of_process(child.pid)
        # Once it reports steps of its own: resuming takes it back to its last checkpoint.
        if last and step > last[1]:
            wall, used = now - last[0], cpu - last[2]
            windows.append(Window(now - begin, number, step - last[1], wall, used, machine - last[3] - used, memory, files))
        last = (now, step, cpu, machine)
    ending = signal.SIGKILL if number % 2 == 0 else signal.SIGTERM
    child.send_signal(ending)
    code = child.wait(60)
    if code not in (-signal.SIGKILL, 130):
        sys.exit(f"session {number} ended with {code}: {child.stderr.read()}")
    # SIGTERM costs no step that was reported, a kill none but those since the last checkpoint.
    if number:
        start, least = step_of(run, ("start",), 1 << 40), before - (SAVE if number % 2 == 1 else 0)
        if not least <= start or step_of(run) <= start:
            sys.exit(f"session {number} began at step {start} and ended at {step_of(run)}; the one before ended at {before}")
    return windows


def main() -> None:
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    rng = random.Random(1)
    words = ["the sea", "and", "the land", "were", "made", "in a day.\n", "so", "long"]
    (WORK / "text.txt").write_text(" ".join(rng.choices(words, k=200_000)))
    run, begin = WORK / "run", time.monotonic()
    wait = min(5.0, max(0.5, SECONDS / KILLS / 30))
    sessions, controls, every = [], [], 2 / 3 * SECONDS / KILLS
    for number in range(KILLS + 1):
        share = 2 / 3 * (number + 1) / KILLS if number < KILLS else 1.0
        windows = session(number, run, begin, begin + share * SECONDS, wait, controls, every)
        sessions.append(windows)
        if len(windows) < 3:
            sys.exit(f"session {number} was too short: {len(windows)} windows; give more MINUTES")
        third = len(windows) // 3
        first, later = windows[third : 2 * third], windows[2 * third :]
        memory = [median(w.memory for w in part) for part in (first, later)]
        print(f"session {number:2}: step {step_of(run):9}, {memory[0] / 1e6:7.2f} MB, later {memory[1] / 1e6:7.2f} "
              f"({100 * (memory[1] / memory[0] - 1):+.2f} %), {max(w.files for w in windows):3} files, "
              f"{median(w.by_clock for w in windows):9.0f} tokens/s, {median(w.by_cpu for w in windows):9.0f} a CPU second",
              flush=True)
    sys.exit(1 if verdict(sessions, controls) else 0)


def verdict(sessions: list, controls: list) -> list:
    """Prints what was found; what of it is a fault."""
    faults = []

    def judge(what: str, value: float, most: float) -> None:
        is_fault = value >= most
        print(f"{what}: {100 * value:.2f} % (less than {100 * most:.0f} %){': FAULT' if is_fault else ''}")
        if is_fault:
            faults.append(what)

    def halves(windows: list, of) -> list:
        third = len(windows) // 3
        return [median(map(of, part)) for part in (windows[third : 2 * third], windows[2 * third :])]

    def growth(windows: list) -> float:
        early, late = halves(windows, lambda w: w.memory)
        return late / early - 1

    judge("resident memory, largest growth in a session", max(map(growth, sessions)), MOST_GROWTH)
    ends = [median(w.memory for w in settled(windows)) for windows in sessions]
    # The first session has made its data, and not read a checkpoint. Each is a process of its own, whose
    # memory lies in other places: some hundred KiB from one to the next.
    resumed = ends[1:]
    half = max(1, len(resumed) // 2)
    grown = median(resumed[-half:]) / median(resumed[:half]) - 1
    judge("resident memory, later half of the sessions against the earlier", grown, MOST_GROWTH)
    # Medians: a checkpoint that is being written, and the folder that is made durable, are open for moments.
    files = [halves(windows, lambda w: w.files) for windows in sessions]
    grown = max(*(late - early for early, late in files), files[-1][1] - files[1][1])
    print(f"open files: {files[1][0]:.0f} to {files[-1][1]:.0f}, by at most {grown:.0f} more (none)")
    if grown > 0:
        faults.append("open files")
    windows = [window for windows in sessions for window in settled(windows)]
    end, rates = windows[-1].at, {}
    quiet = sum(w.is_quiet for w in windows)
    by_clock = quiet >= len(windows) / 2
    print(f"{quiet} of {len(windows)} windows while nothing else ran" + ("" if by_clock else ": CPU time is compared"))
    for name, seen in ("run", windows), ("control", controls):
        counted = [w for w in seen if w.is_quiet or not by_clock]
        thirds = [w for w in counted if w.at <= end / 3], [w for w in counted if w.at >= 2 * end / 3]
        if not all(thirds):
            faults.append(f"throughput: no windows of the {name} to compare")
            print(faults[-1])
            return faults
        first, last = rates[name] = [median(w.by_clock if by_clock else w.by_cpu for w in third) for third in thirds]
        print(f"throughput, {name}: {first:.0f} tokens/s in the first third ({len(thirds[0])} windows), {last:.0f} in the "
              f"last ({len(thirds[1])}), {100 * (last / first - 1):+.2f} %")
    drift = rates["run"][1] / rates["control"][1] / (rates["run"][0] / rates["control"][0]) - 1
    judge("throughput, drift of the run against the control", abs(drift), MOST_DRIFT)
    return faults


if __name__ == "__main__":
    main()
