"""A run that is disturbed: its folder, its sessions, and what must hold after each of them."""

import ctypes
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import time
import zlib
from collections import Counter
from pathlib import Path

HERE = "HERE"
BAD = ("lost", "wrong hash", "hung", "unclear")
# Of the small disk: some times what a run writes.
DISK = 16 << 20
# Seconds that a session may take, with another forty times what an undisturbed run does: machines have other work.
LONGEST = 90

_model = "--n-layer 2 --n-embd 32 --n-head 2 --block-size 32 --batch-size 8 --warmup-steps 20"
_text = ["--data", f"{HERE}/text.txt"]
_examples = ["--data", f"{HERE}/examples.jsonl", "--loss-on", "completions"]
_base = ["--base", f"{HERE}/base", "--block-size", "32", "--batch-size", "8", "--warmup-steps", "20"]
_lora = [*_base, "--lora-rank", "2"]


def _case(text: str, *more) -> list:
    return [*text.split(), *more]


# Settings, each with data of a kind. None is fast: a run has some hundred steps of some milliseconds.
CASES = {
    "text, AdamW": _case(f"{_model} --tokenizer bytes --dropout 0.1 --max-steps 600 --save-interval 20 --eval-interval 50", *_text),
    "text, AdamW in 8 bits, bf16": _case(
        f"{_model} --tokenizer bpe:300 --optimizer adamw8 --dtype bf16 --max-steps 600 --save-interval 7 "
        "--keep-checkpoints 1 --eval-interval 60", *_text),
    "text, Muon": _case(
        f"{_model} --tokenizer bytes --optimizer muon --max-steps 400 --save-interval 15 --eval-interval 50", *_text),
    "shards, momentum, bf16": _case(
        f"{_model} --optimizer momentum --learning-rate 0.03 --weight-decay 0.001 --dtype bf16 --max-steps 600 "
        "--save-interval 30 --keep-checkpoints 2 --eval-interval 45", "--data", f"{HERE}/shards"),
    "shards, descent": _case(
        f"{_model} --optimizer sgd --learning-rate 0.1 --weight-decay 0.001 --max-steps 600 --save-interval 13 "
        "--val-fraction 0 --keep-checkpoints 4 --gradient-accumulation-steps 2", "--data", f"{HERE}/shards"),
    "settings in a file": _case(
        f"{_model} --norm rms --positions rotary --activation swiglu --no-bias --tokenizer chars --save-interval 25 "
        "--keep-checkpoints 3 --eval-interval 30", "--config", f"{HERE}/run.toml"),
    "instructions": _case("--max-steps 400 --save-interval 15 --keep-checkpoints 2 --eval-interval 40", *_base, *_examples),
    "spikes skipped, steps in parts": _case(
        f"{_model} --tokenizer bytes --learning-rate 0.001 --on-spike skip --spike-threshold 3 --spike-window 32 --batch-parts 4 "
        "--gradient-accumulation-steps 2 --max-steps 400 --save-interval 12 --eval-interval 40", *_text),
    "adapters, text, bf16": _case(
        "--dtype bf16 --max-steps 600 --save-interval 20 --keep-checkpoints 2 --eval-interval 50", *_lora, *_text),
    "adapters, instructions": _case(
        "--lora-dropout 0.1 --max-steps 400 --save-interval 10 --keep-checkpoints 3 --eval-interval 40", *_lora, *_examples),
}
TOML = f"data = ['{HERE}/text.txt']\nmax-steps = 600\n"


# Whether there are small disks; faults.py finds out.
SMALL_DISKS = False


class Bad(Exception):
    """What must not be: `what` of `BAD`."""

    def __init__(self, what: str, text: str):
        super().__init__(text)
        self.what = what


ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "RUST_BACKTRACE"}
_libc = ctypes.CDLL(None, use_errno=True)


def _child(limits: dict):
    """What a session does before it begins: it may not ignore modes of files, and has its limits."""
    def prepare() -> None:
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH; of root, who alone has them
            _libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for which, most in limits.items():
            resource.setrlimit(which, (most, most))
    return prepare


def mounts(work: Path) -> bool:
    """Whether small disks can be mounted, in the namespace that faults.sh has made (it says so)."""
    if not os.environ.get("ALONE"):
        return False
    folder = work / "disk"
    folder.mkdir()
    tried = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if tried.returncode == 0:
        subprocess.run(["umount", folder], check=True)
    return tried.returncode == 0


def read_only_works(work: Path) -> bool:
    """Whether a session respects modes of files."""
    folder = work / "modes"
    folder.mkdir()
    folder.chmod(0o555)
    tried = subprocess.run(["touch", folder / "a"], preexec_fn=_child({}), capture_output=True)
    folder.chmod(0o755)
    return tried.returncode != 0


def content(whole: bytes) -> tuple:
    """The step of a checkpoint and the checksums of its weights and moments; ValueError if it is not whole."""
    def take(at: int, size: int) -> int:
        if at + size > len(whole):
            raise ValueError("truncated")
        return int.from_bytes(whole[at : at + size], "little")

    if whole[:8] != b"CLLMCKPT":
        raise ValueError("no checkpoint")
    length = take(12, 4)
    if zlib.crc32(whole[16 : 16 + length]) != take(16 + length, 4):
        raise ValueError("its header has another checksum")
    at, sums, tag = 20 + length, {}, b""
    while tag != b"end ":
        tag, size = whole[at : at + 4], take(at + 8, 8)
        if zlib.crc32(whole[at : at + 16 + size]) != take(at + 16 + size, 4):
            raise ValueError(f"its {tag} has another checksum")
        if tag != b"meta":
            sums[tag.decode()] = take(at + 16 + size, 4)
        at += 20 + size
    if at != len(whole):
        raise ValueError("there is more behind it")
    # Updates, behind six sizes, two flags and the seed.
    return take(16 + 9 * 8, 8), sums


class Run:
    def __init__(self, cllm: str, work: Path, root: Path, case: str, known: dict, rng=None):
        self.cllm, self.root, self.case, self.known = cllm, root, case, known
        root.mkdir(parents=True)
        self.here = root / "disk"
        self.here.mkdir()
        # Half of the runs are on a small disk in memory, the others write to a real one. One that is not disturbed
        # keeps all of its checkpoints.
        self.is_small = SMALL_DISKS and (not rng or rng.random() < 0.5)
        if self.is_small:
            size = DISK if rng else 16 * DISK
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", self.here], check=True)
        for entry in (work / "good").iterdir():
            copy = shutil.copytree if entry.is_dir() else shutil.copy2
            copy(entry, self.here / entry.name)
        (self.here / "run.toml").write_text(TOML.replace(HERE, str(self.here)))
        self.dir = self.here / "run"
        self.flags = [flag.replace(HERE, str(self.here)) for flag in CASES[case]]
        self.max_steps = int(self.flags[self.flags.index("--max-steps") + 1]) if "--max-steps" in self.flags else 600
        self.threads = rng.choice(["1", "2"]) if rng else "1"
        self.rng, self.sessions = rng, 0
        # SHA-256 of files that have been damaged on purpose, and the step that is not to be lost.
        self.damaged, self.reached = set(), -1
        # What says that it has begun was taken away.
        self.is_gone = False
        # Steps that its report may be without, for lines of it that were damaged on purpose; None: nobody counts.
        self.unreported = 0
        self.begin = time.monotonic()

    def log(self, text: str) -> None:
        with open(self.root / "log", "a") as log:
            log.write(f"{time.monotonic() - self.begin:8.3f} {text}\n")

    def has(self, what: str) -> bool:
        return what in self.case

    def has_begun(self) -> bool:
        return (self.dir / "settings.json").exists()

    def checkpoints(self) -> list:
        return sorted(self.dir.glob("step-*.cllm")) + sorted(self.dir.glob("best.cllm"))

    def shards(self) -> list:
        """Token shards of the run, its own or those it was given, and what belongs to them."""
        folder = self.here / "shards" if self.has("shards") else self.dir / "data"
        return sorted(folder.glob("*.bin")) + sorted(folder.glob("*.bin.*"))

    def _events(self) -> list:
        # They may have been taken away, while the run went on writing them.
        for place in (self.dir / "metrics.jsonl", self.here / "aside/metrics.jsonl", self.here / "aside"):
            try:
                text = place.read_bytes()
                break
            except OSError:
                pass
        else:
            return []
        events = []
        for line in text.splitlines()[-4:]:
            try:
                events.append(json.loads(line))
            except ValueError:
                pass
        return events

    def done(self) -> str:
        """The weights of the end, if it has been reached."""
        return next((event["weights_sha256"] for event in self._events() if event.get("event") == "done"), "")

    def step(self) -> int:
        return max((event.get("step") or 0 for event in self._events()), default=0)

    def forgive(self, path: Path) -> None:
        """The file was damaged on purpose."""
        self.damaged.add(hashlib.sha256(path.read_bytes()).hexdigest())

    def is_forgiven(self, path: Path) -> bool:
        return hashlib.sha256(path.read_bytes()).hexdigest() in self.damaged

    def newest(self) -> int:
        """The newest step of a whole checkpoint. All that nobody has damaged must be whole, and right."""
        newest = -1
        for path in self.checkpoints():
            whole = path.read_bytes()
            if hashlib.sha256(whole).hexdigest() in self.damaged:
                continue
            try:
                step, sums = content(whole)
            except ValueError as error:
                raise Bad("lost", f"{path}: {error}") from error
            if self.known["sums"].get(step, sums) != sums:
                raise Bad("wrong hash", f"{path}: not what an undisturbed run has after step {step}")
            newest = max(newest, step)
        return newest

    def verify(self) -> None:
        """After a session: nothing is lost."""
        newest = self.newest()
        if newest < self.reached:
            raise Bad("lost", f"there was a checkpoint of step {self.reached}, the newest is of step {newest}")
        self.reached = newest
        self.log(f"newest checkpoint: {newest}")
        if self.unreported is None:
            return
        reported = self.reported()
        # Each of them is reported, and once.
        lost = [step for step in range(1, newest + 1) if step not in reported]
        twice = [step for step, times in Counter(reported).items() if times > 1]
        if len(lost) > self.unreported or len(twice) > self.unreported:
            raise Bad("lost", f"metrics.jsonl has nothing about steps {lost[:5]} of {newest}, and {twice[:5]} twice: "
                              f"{self.unreported} were damaged")

    def reported(self) -> list:
        """Steps that the report has, in its order."""
        steps = []
        try:
            lines = (self.dir / "metrics.jsonl").read_bytes().splitlines()
        except FileNotFoundError:
            lines = []
        for line in lines:
            try:
                event = json.loads(line)
                if event["event"] == "step":
                    steps.append(event["step"])
            except (ValueError, KeyError, TypeError):
                pass
        return steps

    def judge(self, session, code: int, ours: tuple = ()) -> str:
        """How a session ended: `done`, `cut` by what we have sent, or `stopped` with a clear error."""
        said = session.said()
        self.log(f"{session.name} ended with {code}" + (f", saying\n{said}" if said else ""))
        if "internal error" in said or "panicked" in said:
            raise Bad("unclear", f"{session.name}: {said[-500:]}")
        if code == 0:
            if self.done() != self.known["sha"]:
                raise Bad("wrong hash", f"{self.done()}, not {self.known['sha']}")
            return "done"
        if code in ours:
            return "cut"
        # The library's lines about memory that was refused come before ours.
        library = ("memory allocation of ", "note: run with `RUST_BACKTRACE")
        lines = [line for line in said.splitlines() if not line.startswith(library)] or [""]
        is_clear = code in (1, 2) and all(line.startswith("cllm: ") for line in lines)
        if not is_clear or not any(mark in lines[-1] for mark in ("/", "--", "memory")):
            raise Bad("unclear", f"{session.name} ended with {code}: {said[-500:]}")
        return "stopped"

    def finish(self) -> None:
        """The last session, which nobody disturbs."""
        session = Session(self, "the last session")
        code = session.wait()
        if self.judge(session, code) != "done":
            raise Bad("lost", f"it does not go on: {session.said()[-500:]}")
        self.verify()

    def close(self, keep: bool) -> None:
        if self.is_small:
            if keep:
                shutil.copytree(self.here, self.root / "left", symlinks=True)
            subprocess.run(["umount", "--lazy", self.here], check=True)
        if not keep:
            shutil.rmtree(self.root)


class Session:
    """A process that trains."""

    def __init__(self, run: Run, name: str, limits=None, keep=None):
        run.sessions += 1
        self.run, self.name = run, f"session {run.sessions} ({name})"
        is_resumed = run.has_begun() or run.is_gone
        rng = run.rng
        args = ["train", "--out-dir", str(run.dir), "--threads", run.threads]
        # The folder remembers what the run was told; it may be told again.
        if not is_resumed or rng.random() < 0.5:
            args += [*run.flags, "--seed", "3", "--log-interval", "1", "--sample-tokens", "0", "--tuning", "off", "--quiet"]
            if keep:
                at = args.index("--keep-checkpoints") if "--keep-checkpoints" in args else len(args)
                args[at : at + 2] = ["--keep-checkpoints", str(keep)]
        args += ["--resume"] if is_resumed else []
        run.log(f"{self.name}: {' '.join(args)}" + (f" with limits {limits}" if limits else ""))
        # Clocks of files are coarse.
        self.begin = time.time() + 0.01
        # A pipe has no largest size; it has room for all that is said.
        self.process = subprocess.Popen(
            [run.cllm, *args], env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, preexec_fn=_child(limits or {}), start_new_session=True)
        self.heard = None
        self.pid, self._peak, self._loaded = self.process.pid, 0, 0
        self.left, self.seen = LONGEST + 40 * run.known.get("seconds", 10), time.monotonic()

    def has_reported(self) -> bool:
        """Whether it has written to the run's log."""
        try:
            return (self.run.dir / "metrics.jsonl").stat().st_mtime > self.begin
        except OSError:
            return False

    def is_over(self) -> bool:
        if self.process.poll() is not None:
            return True
        now = time.monotonic()
        if now - self.seen > 0.5:
            # Time in which somebody stops the session, or us, is not its own.
            is_stopped = self.state().startswith("T")
            self.left -= 0.0 if is_stopped else min(now - self.seen, 1.0)
            self.seen = now
            if self.left < 0:
                self._hang()
        return False

    def state(self) -> str:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("State:"):
                return line.split(None, 1)[1]
        return ""

    def _hang(self) -> None:
        state = self.state()
        waits = [(Path(task) / "wchan").read_text() for task in Path(f"/proc/{self.pid}/task").iterdir()]
        self.process.kill()
        self.process.wait()
        raise Bad("hung", f"{self.name} does not end: {state}, its threads in {waits}")

    def status(self, field: str) -> int:
        """A size of the process, in bytes."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) << 10
        return 0

    def is_loaded(self) -> bool:
        """Whether the program has begun, and says what happens to it: it has its own handler of SIGABRT then."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (signal.SIGABRT - 1) & 1)
        return False

    def peak(self) -> int:
        return self._peak

    def loaded(self) -> int:
        """What it had, about, when it was loaded."""
        return self._loaded

    def wait(self) -> int:
        """Waits for its end: its exit code, or a signal's number, negative."""
        while not self.is_over():
            if not self.run.known:
                try:
                    self._peak = max(self._peak, self.status("VmPeak"))
                    if not self._loaded and self.is_loaded():
                        self._loaded = self.status("VmSize")
                except OSError:
                    pass
            time.sleep(0.005)
        return self.process.returncode

    def send(self, number: int) -> None:
        if self.process.poll() is None:
            self.run.log(f"signal {signal.Signals(number).name} at step {self.run.step()}")
            self.process.send_signal(number)

    def sleep(self, seconds: float) -> None:
        """Until then, or until it is over."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.is_over():
            time.sleep(min(0.001, seconds))

    def moment(self, rng, mode: str = "") -> bool:
        """Waits for a random moment; whether the session is still there then."""
        run = self.run
        mode = mode or rng.choice(["time", "early", "step", "step", "step", "write", "write"])
        share, first = rng.random(), rng.random()
        if mode == "early":
            self.sleep(0.3 * share)
        elif mode == "time":
            left = 1 - max(run.reached, 0) / run.max_steps
            self.sleep(0.1 + 0.7 * share * left * run.known["seconds"])
        elif mode == "step":
            now = max(run.reached, 0)
            at = now + 1 + int(0.5 * share * (run.max_steps - now))
            while run.step() < at and not self.is_over():
                time.sleep(0.001)
        else:
            for _ in range(1 + int(3 * first)):
                while not self._writes() and not self.is_over():
                    time.sleep(0.0001)
                if share < 0.5:
                    break
                while self._writes() and not self.is_over():
                    time.sleep(0.0001)
            self.sleep(0.003 * share)
        run.log(f"now ({mode})")
        return not self.is_over()

    def _writes(self) -> bool:
        """Whether it is writing a checkpoint."""
        try:
            return any(name.endswith(".cllm.tmp") for name in os.listdir(self.run.dir))
        except OSError:
            return False

    def said(self) -> str:
        """What it has said, once it is over."""
        if self.heard is None:
            self.heard = self.process.stderr.read().decode(errors="replace")
            self.process.stderr.close()
        return self.heard
