"""What is done to runs."""

import os
import random
import resource
import shutil
import signal
from pathlib import Path

from faults_run import Bad, Run, Session, content

KB = 1 << 10


class Kind:
    name, weight = "", 1.0

    def applies(self, run: Run) -> bool:
        return True

    def inflict(self, run: Run, rng: random.Random):
        """Does it to a session: what was done, and how it ended (`went on`, or `resumed` after an error whose cause
        was mended); None if the session was over before."""
        raise NotImplementedError


def cut(run: Run, session: Session, ours: tuple) -> int:
    """Waits for the end of a session that nothing is in the way of: by what we have sent, or that of the run."""
    code = session.wait()
    if run.judge(session, code, ours) == "stopped":
        raise Bad("lost", f"nothing is in its way, and it ends with {code}: {session.said()[-500:]}")
    return code


class Kill(Kind):
    name, weight, mode = "SIGKILL", 1.0, ""

    def inflict(self, run, rng):
        session = Session(run, self.name)
        if not session.moment(rng, self.mode):
            return over(run, session)
        session.send(signal.SIGKILL)
        cut(run, session, (-signal.SIGKILL,))
        run.verify()
        return self.name, "went on"


class KillInWrite(Kill):
    name, mode = "SIGKILL while it saves", "write"


class Ask(Kind):
    name = "SIGTERM, SIGINT"

    def inflict(self, run, rng):
        number, again, pause = rng.choice([signal.SIGTERM, signal.SIGINT]), rng.random() < 0.3, 0.6 * rng.random()
        session = Session(run, self.name)
        if not session.moment(rng):
            return over(run, session)
        session.send(number)
        if again:
            session.sleep(pause)
            session.send(number)
        # Before it watches for signals, and so before it reports, they end it as any program.
        code = cut(run, session, (130, -number))
        if code == -number and session.has_reported():
            raise Bad("lost", f"it does not save before it ends by {signal.Signals(number).name}")
        run.verify()
        if code == 130 and not again and run.reached < run.step():
            raise Bad("lost", f"asked to end behind step {run.step()}, it has saved {run.reached}")
        return self.name, "went on"


class Pause(Kind):
    name = "SIGSTOP and SIGCONT"

    def inflict(self, run, rng):
        ends, pauses = rng.random() < 0.6, [0.4 * rng.random() for _ in range(rng.randint(1, 3))]
        is_killed = rng.random() < 0.3
        session = Session(run, self.name)
        if not session.moment(rng):
            return over(run, session)
        for seconds in pauses:
            session.send(signal.SIGSTOP)
            session.sleep(seconds)
            if is_killed:
                break
            session.send(signal.SIGCONT)
            session.sleep(0.05)
        if ends or is_killed:
            session.send(signal.SIGKILL)
        cut(run, session, (-signal.SIGKILL,))
        run.verify()
        return self.name, "went on"


class Threads(Kind):
    name = "other threads on resume"

    def inflict(self, run, rng):
        session = Session(run, self.name)
        if not session.moment(rng):
            return over(run, session)
        session.send(signal.SIGKILL)
        cut(run, session, (-signal.SIGKILL,))
        run.threads = rng.choice([n for n in ("1", "2", "3", "auto") if n != run.threads])
        session = Session(run, self.name)
        session.moment(rng)
        session.send(signal.SIGKILL)
        cut(run, session, (-signal.SIGKILL,))
        run.verify()
        return self.name, "went on"


def over(run: Run, session: Session):
    """The session had ended before anything was done to it."""
    if run.judge(session, session.wait()) != "done":
        raise Bad("lost", f"it ends undisturbed: {session.said()[-500:]}")
    run.verify()


class Lasting(Kind):
    """What stays until it is mended."""

    def do(self, run: Run, session, rng: random.Random) -> bool:
        """Does it, to a living session or to the folder alone; whether there was anything to do it to."""
        raise NotImplementedError

    def mend(self, run: Run, was_refused: bool) -> None:
        """Takes the cause away."""

    def limits(self, run: Run, rng: random.Random):
        """What sessions have from their start."""

    def inflict(self, run, rng):
        live, stays, killed, pause = rng.random() < 0.6, rng.random() < 0.5, rng.random() < 0.4, 0.4 * rng.random()
        moment, what = random.Random(rng.random()), random.Random(rng.random())
        ended = []
        if live:
            session = Session(run, self.name)
            if not session.moment(moment):
                return over(run, session)
            if not self.do(run, session, what):
                live, killed, pause = False, True, 0.0
            if killed:
                session.sleep(pause)
                session.send(signal.SIGKILL)
            ended.append(run.judge(session, session.wait(), (-signal.SIGKILL,)))
            self.check(run)
            if not live:
                # There was nothing to do it to yet.
                return Kill.name, "went on"
        elif not self.do(run, None, what):
            return Kill().inflict(run, rng)
        if ended != ["done"] and (not live or stays):
            session = Session(run, f"{self.name}, which stays", self.limits(run, what))
            ended.append(run.judge(session, session.wait()))
            self.check(run, session)
        self.mend(run, "stopped" in ended)
        run.verify()
        return self.name, "resumed" if "stopped" in ended else "went on"

    def check(self, run: Run, session=None) -> None:
        run.verify()


class DiskFull(Lasting):
    name, weight = "disk full (small disk)", 1.5

    def applies(self, run):
        return run.is_small

    def do(self, run, session, rng):
        free = rng.choice([0, 0, 1, 4 * KB, 60 * KB, 300 * KB, 500 * KB])
        filler, block = run.here / "filler", bytes(64 * KB)
        with open(filler, "wb", buffering=0) as file:
            size = 0
            try:
                while True:
                    size += file.write(block)
            except OSError:
                pass
            file.truncate(max(0, size - free))
        run.log(f"disk filled but for {free} bytes, at step {run.step()}")
        return True

    def mend(self, run, was_refused):
        (run.here / "filler").unlink()


class LargestFile(Lasting):
    name = "disk full (RLIMIT_FSIZE)"

    def do(self, run, session, rng):
        self.most = rng.choice([0, 1, 100, rng.randrange(4 * KB), rng.randrange(100 * KB), rng.randrange(600 * KB)])
        run.log(f"files of at most {self.most} bytes from step {run.step()} on")
        return session is None or limit(session, resource.RLIMIT_FSIZE, self.most)

    def limits(self, run, rng):
        return {resource.RLIMIT_FSIZE: self.most}


def limit(session: Session, which: int, most: int) -> bool:
    try:
        resource.prlimit(session.pid, which, (most, most))
    except (ProcessLookupError, ValueError):
        return False
    return True


class Memory(Lasting):
    name, weight = "memory limited (RLIMIT_AS, _DATA)", 1.5

    def do(self, run, session, rng):
        self.which = rng.choice([resource.RLIMIT_AS, resource.RLIMIT_DATA])
        more = rng.choice([-1, 0, 0, rng.randrange(64 * KB), rng.randrange(2048 * KB), rng.randrange(8192 * KB)])
        # Enough for the system to load the program, which has no words of its own until then.
        least = max(24 << 20, run.known["loaded"])
        self.most = rng.randrange(least, max(least + (1 << 20), run.known["memory"]))
        if session is None:
            return True
        try:
            now = session.status("VmSize" if self.which == resource.RLIMIT_AS else "VmData")
            if not session.is_loaded():
                return False
        except OSError:
            return False
        if now < (24 << 20 if self.which == resource.RLIMIT_AS else 4 << 20):
            return False
        run.log(f"{now} bytes in use and {more} more allowed, at step {run.step()}")
        return limit(session, self.which, max(0, now + more))

    def limits(self, run, rng):
        return {self.which: self.most}


class ReadOnly(Lasting):
    name = "read-only files and folders"

    def applies(self, run):
        return run.dir.exists() and READ_ONLY

    def do(self, run, session, rng):
        if not run.dir.exists():
            return False
        paths = [run.dir, *run.dir.rglob("*"), *run.shards()]
        self.modes = {path: path.stat().st_mode for path in paths if path.exists()}
        what = rng.choice(["the folder", "the files", "everything", "nothing may be read"])
        run.log(f"read-only: {what}, at step {run.step()}")
        for path in sorted(self.modes, reverse=True):
            try:
                if what == "nothing may be read":
                    path.chmod(0)
                elif path == run.dir and what != "the files":
                    path.chmod(0o555)
                elif path != run.dir and what != "the folder":
                    path.chmod(0o555 if path.is_dir() else 0o444)
            except FileNotFoundError:
                pass
        return True

    def check(self, run, session=None):
        """It is looked at when it is mended: we may not see it before."""

    def mend(self, run, was_refused):
        for path in sorted(self.modes):
            if path.exists():
                path.chmod(self.modes[path])


# Whether sessions respect modes of files; faults.py finds out.
READ_ONLY = True


def damage(path: Path, how: str, rng: random.Random) -> bytes:
    """Damages a file in its place, and hands back what it was."""
    whole = path.read_bytes()
    if not whole:
        return whole
    with open(path, "r+b", buffering=0) as file:
        if how == "cut":
            size = len(whole)
            file.truncate(rng.choice([0, rng.randrange(size), rng.randrange(size), size // 2, size - 1]) if size else 0)
        else:
            for _ in range(rng.choice([1, 1, 1, 2, 8])):
                bit = rng.randrange(max(1, 8 * len(whole)))
                byte = os.pread(file.fileno(), 1, bit // 8)
                os.pwrite(file.fileno(), bytes([byte[0] ^ 1 << bit % 8]), bit // 8)
    return whole


class Checkpoints(Lasting):
    how = ""

    def do(self, run, session, rng):
        self.before, self.must_be_named = {}, ""
        what = rng.choice(["newest", "newest", "some", "all", "base"])
        paths = run.checkpoints()
        if what == "base" and (run.dir / "base.cllm").exists():
            paths = [run.dir / "base.cllm"]
        elif what == "some":
            paths = [path for path in paths if rng.random() < 0.5]
        elif what != "all":
            paths = sorted(paths, key=step_of, reverse=True)[:1]
        for path in paths:
            try:
                whole = path.read_bytes()
                self.before[path] = damage(path, self.how, rng)
                if path.name != "base.cllm" and path.read_bytes() != whole:
                    run.forgive(path)
            except FileNotFoundError:
                continue
            run.log(f"{path.name}: {self.how}, at step {run.step()}")
        before, run.reached = run.reached, run.newest()
        # Of two of the same step one may do.
        if session is None and what == "newest" and before > run.reached and len(self.before) == 1:
            self.must_be_named = next(iter(self.before)).name
        return bool(self.before)

    def check(self, run, session=None):
        run.verify()
        if session and self.must_be_named and self.must_be_named not in session.said():
            raise Bad("unclear", f"{self.must_be_named} is damaged, and not named: {session.said()[-300:]}")
        is_base = any(path.name == "base.cllm" for path in self.before)
        if session and session.process.returncode != 0 and not is_base and run.newest() >= 0:
            raise Bad("lost", f"there is a whole checkpoint, and it does not go on: {session.said()[-500:]}")

    def mend(self, run, was_refused):
        is_needed = was_refused or run.newest() < 0
        for path, whole in self.before.items():
            # A run goes on without; what it cannot do without is put back.
            if path.name == "base.cllm" or is_needed and path.exists() and run.is_forgiven(path):
                path.write_bytes(whole)


def step_of(path: Path) -> int:
    try:
        return content(path.read_bytes())[0]
    except (ValueError, FileNotFoundError):
        return -1


class CutCheckpoints(Checkpoints):
    name, how, weight = "checkpoints cut", "cut", 1.5


class FlipCheckpoints(Checkpoints):
    name, how, weight = "bits of checkpoints flipped", "flip", 1.5


class Shards(Lasting):
    how = ""

    def applies(self, run):
        return bool(run.shards())

    def do(self, run, session, rng):
        self.before = {}
        paths = run.shards()
        for path in rng.sample(paths, rng.randint(1, len(paths))) if paths else []:
            try:
                self.before[path] = damage(path, self.how, rng)
            except FileNotFoundError:
                continue
            run.log(f"{path.name}: {self.how}, at step {run.step()}")
        return bool(self.before)

    def mend(self, run, was_refused):
        for path, whole in self.before.items():
            if path.exists():
                path.write_bytes(whole)


class CutShards(Shards):
    name, how = "token shards cut", "cut"


class FlipShards(Shards):
    name, how = "bits of token shards flipped", "flip"


class Settings(Lasting):
    name, weight = "its settings, tokenizer damaged", 0.7

    def do(self, run, session, rng):
        self.path = run.dir / rng.choice(["settings.json", "tokenizer.json"])
        try:
            self.whole = self.path.read_bytes()
        except FileNotFoundError:
            return False
        at, bit = rng.randrange(len(self.whole)), 1 << rng.randrange(8)
        flipped = self.whole[:at] + bytes([self.whole[at] ^ bit]) + self.whole[at + 1 :]
        self.bad = rng.choice([flipped, flipped, self.whole[:at]])
        self.path.write_bytes(self.bad)
        run.log(f"{self.path.name}: bit {bit} of byte {at}, or cut there, at step {run.step()}")
        return True

    def mend(self, run, was_refused):
        # A session that took them has written them anew.
        if self.path.exists() and self.path.read_bytes() == self.bad:
            self.path.write_bytes(self.whole)


class Report(Lasting):
    """What it has reported is not put back: it goes on, and has lost no more than what was damaged."""

    name, weight = "its report damaged", 0.7

    def do(self, run, session, rng):
        path, how = run.dir / "metrics.jsonl", rng.choice(["flip", "flip", "flip", "cut"])
        # A file that is cut while somebody writes to it has a hole.
        if session is not None:
            how = "flip"
        self.live, reported = session, run.reported()
        try:
            before = damage(path, how, rng)
            after = path.read_bytes()
        except FileNotFoundError:
            return False
        if run.unreported is not None:
            # A bit of what ends a line damages two of them.
            flipped = 2 * sum(one != other for one, other in zip(before, after))
            run.unreported += len(reported) - len(run.reported()) if how == "cut" else flipped
        run.log(f"{path.name}: {how}, at step {run.step()}")
        return True

    def check(self, run, session=None):
        run.verify()
        for one in filter(None, (self.live, session)):
            if one.process.returncode not in (0, -signal.SIGKILL):
                raise Bad("lost", f"its report is damaged, and it does not go on: {one.said()[-500:]}")


class Removed(Lasting):
    name, weight = "its data taken away", 2.0

    def do(self, run, session, rng):
        places = [run.dir, run.dir / "data", run.dir / "tokenizer.json", run.dir / "settings.json", run.dir / "metrics.jsonl"]
        places += [run.here / name for name in ("text.txt", "shards", "examples.jsonl", "base", "run.toml")]
        places += [run.dir / "base.cllm", *run.shards()]
        places = [path for path in places if path.exists() and run.dir.exists()]
        if not places:
            return False
        self.place, self.aside, begun = rng.choice(places), run.here / "aside", run.has_begun()
        try:
            self.place.rename(self.aside)
        except FileNotFoundError:
            return False
        run.is_gone = begun
        if self.place.name == "metrics.jsonl":
            run.unreported = None
        run.log(f"{self.place} taken away at step {run.step()}")
        return True

    def check(self, run, session=None):
        if self.place != run.dir:
            run.verify()

    def mend(self, run, was_refused):
        run.is_gone = False
        # What the run has made again stays.
        if self.place == run.dir and self.place.exists():
            raise Bad("lost", f"{run.dir} was made again")
        if self.place.exists() or not self.place.parent.exists():
            remove(self.aside)
        else:
            self.aside.rename(self.place)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


KINDS = [Kill(), KillInWrite(), Ask(), Pause(), Threads(), DiskFull(), LargestFile(), Memory(), ReadOnly(),
         CutCheckpoints(), FlipCheckpoints(), CutShards(), FlipShards(), Settings(), Report(), Removed()]


def choose(rng: random.Random, run: Run) -> Kind:
    wanted = os.environ.get("ONLY", "")
    some = [kind for kind in KINDS if kind.applies(run) and (not wanted or wanted in kind.name)]
    if not some:
        return KINDS[0]
    return rng.choices(some, [kind.weight for kind in some])[0]
