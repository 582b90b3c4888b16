"""Generation of one stream by cllm, PyTorch and llama.cpp in turns: tokens a second, and the share of
the bandwidth that reading the weights for each token takes."""

import json
import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tokenizers import Tokenizer

from measure import output
from settings import PYTHON, Setting, script
from table import on_threads
from works import DATA, PEERS, ROOT, STEPS, Work, run_folder, start_file

PROMPT = 128
NEW = 256
# Where run.sh has put llama.cpp, if it could be built.
LLAMA = PEERS / "llama" / "bin" / "python"


@dataclass
class Speaker:
    """One program in one setting on some threads."""

    program: str
    dtype: str
    threads: int
    setting: Setting | None = None
    speeds: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    bandwidths: list[float] = field(default_factory=list)
    weights: int = 0
    text: str = ""

    @property
    def name(self) -> str:
        what = self.setting.name if self.setting else self.dtype
        return f"{self.program} {what}, {on_threads(self.threads)}"


def prompt_of(tokenizer: Tokenizer) -> str:
    """The beginning of a line of the data that is 128 tokens, of which 128 tokens come again."""
    with (DATA / "reference.txt").open() as file:
        text = file.read(20_000)
    for line in range(50):
        text = text[text.index("\n") + 1 :]
        words = tokenizer.decode(tokenizer.encode(text[:4_000]).ids[:PROMPT])
        if len(tokenizer.encode(words).ids) == PROMPT:
            return words
    raise SystemExit(f"{DATA}/reference.txt: no {PROMPT} tokens that a text stands for")


def run_cllm(speaker: Speaker, cllm: Path, work: Work, prompt: str, via: list[str]) -> None:
    """One `cllm generate`; its clock is the arrival of the text, from the first new token to
    the last. Every token has text of its own, as the JSON of another run says."""
    command = [*via, str(cllm), "generate", "--checkpoint"]
    command += [str(run_folder(work.name) / f"step-{STEPS}.cllm"), "--prompt", prompt, "--greedy"]
    command += ["--tokens", str(NEW), "--dtype", speaker.dtype]
    command += ["--threads", str(speaker.threads)]
    if not speaker.text:
        spoken = json.loads(output([*command, "--log-format", "json"]))
        if spoken["tokens"] != NEW:
            raise SystemExit(f"{work.name}: cllm ended the text after {spoken['tokens']} tokens")
        speaker.text = spoken["text"].removeprefix(prompt)
    length = len(prompt.encode())
    seen, first, last = b"", 0.0, 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        while piece := os.read(process.stdout.fileno(), 1 << 16):
            seen += piece
            now = time.perf_counter()
            # The line break after the text comes with no token.
            if len(seen) > length and not first:
                first = now
            if piece != b"\n":
                last = now
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\nended with {process.returncode}")
    speaker.speeds.append((NEW - 1) / (last - first))
    speaker.peaks.append(usage.ru_maxrss * 1024)


def run_torch(speaker: Speaker, work: Work, ids: list[int], tokenizer: Tokenizer, via) -> None:
    """One process of PyTorch."""
    command = [*via, PYTHON, script("generate.py"), start_file(work.name), *speaker.setting.flags()]
    command += ["--prompt", ",".join(map(str, ids)), "--new", NEW, "--threads", speaker.threads]
    environment = speaker.setting.environment(speaker.threads)
    result = json.loads(output(command, env=environment).splitlines()[-1])
    speaker.speeds.append((NEW - 1) / result["seconds"])
    speaker.peaks.append(result["peak_rss"])
    speaker.bandwidths.append(result["bandwidth"])
    speaker.weights = result["weights"]
    speaker.text = tokenizer.decode(result["tokens"])


def run_llama(speaker: Speaker, work: Work, ids: list[int], tokenizer: Tokenizer, via) -> None:
    """One process of llama.cpp."""
    generate = ROOT / "benches" / "peers" / "llama" / "generate.py"
    command = [*via, LLAMA, generate, start_file(work.name), "--prompt", ",".join(map(str, ids))]
    command += ["--new", NEW, "--threads", speaker.threads, "--dtype", speaker.dtype]
    result = json.loads(output(command).splitlines()[-1])
    speaker.speeds.append((NEW - 1) / result["seconds"])
    speaker.peaks.append(result["peak_rss"])
    speaker.text = tokenizer.decode(result["tokens"])


def speakers_of(settings: list[Setting], threads: int) -> list[Speaker]:
    """All that speak on so many threads."""
    dtypes = ("f32", "bf16")
    speakers = [Speaker("cllm", dtype, threads) for dtype in dtypes]
    for setting in settings:
        dtype = "f32" if setting.is_f32 else "bf16"
        speakers.append(Speaker("PyTorch", dtype, threads, setting))
    if LLAMA.exists():
        speakers += [Speaker("llama.cpp", dtype, threads) for dtype in dtypes]
    return speakers


def compare(work: Work, settings: list[Setting], args, note) -> None:
    """Runs all in turns and prints the table."""
    if not LLAMA.exists():
        note(f"{work.name}: without llama.cpp, which run.sh could not build")
    tokenizer = Tokenizer.from_file(str(run_folder(work.name) / "tokenizer.json"))
    prompt = prompt_of(tokenizer)
    ids = tokenizer.encode(prompt).ids
    speakers = [speaker for n in args.threads for speaker in speakers_of(settings, n)]
    for turn in range(args.runs):
        for speaker in speakers if turn % 2 == 0 else speakers[::-1]:
            if speaker.program == "PyTorch":
                run_torch(speaker, work, ids, tokenizer, args.via)
            elif speaker.program == "llama.cpp":
                run_llama(speaker, work, ids, tokenizer, args.via)
            else:
                run_cllm(speaker, args.cllm, work, prompt, args.via)
            note(f"{work.name}: turn {turn + 1}, {speaker.name}: {speaker.speeds[-1]:.0f} tokens/s")
    print_table(work, speakers)


def print_table(work: Work, speakers: list[Speaker]) -> None:
    """Medians in Markdown."""
    print(f"\n### {work.name}: {work.title}, {PROMPT} + {NEW} tokens\n")
    header = ["", "threads", "tokens/s", "lowest to highest", "weights read", "of the bandwidth"]
    header += ["peak memory", "text of cllm f32"]
    print("| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
    ours = speakers[0]
    for speaker in speakers:
        peers = [s for s in speakers if s.setting and s.dtype == speaker.dtype]
        like = [s for s in peers if s.threads == speaker.threads] or peers
        weights = like[0].weights
        bandwidth = median(value for s in like for value in s.bandwidths)
        speed = median(speaker.speeds)
        same = len(os.path.commonprefix([speaker.text, ours.text])) / len(ours.text)
        cells = [
            speaker.name.rsplit(",", 1)[0],
            f"{speaker.threads}",
            f"{speed:,.0f}",
            f"{min(speaker.speeds):,.0f} to {max(speaker.speeds):,.0f}",
            f"{weights * speed / 1e9:.1f} GB/s",
            f"{100 * weights * speed / bandwidth:.0f} %",
            f"{median(speaker.peaks) / 1e6:,.0f} MB",
            "yes" if same == 1.0 else f"the first {100 * same:.0f} %",
        ]
        print("| " + " | ".join(cells) + " |")
    print()
    for speaker in speakers:
        if speaker.program == "cllm":
            print_ratios(speaker, speakers)


def print_ratios(speaker: Speaker, speakers: list[Speaker]) -> None:
    """One of cllm's beside the best of each other program on as many threads."""
    like = [s for s in speakers if s.threads == speaker.threads]
    for program, dtypes in [
        ("PyTorch", (speaker.dtype,)),
        ("PyTorch", ("f32", "bf16")),
        ("llama.cpp", (speaker.dtype,)),
    ]:
        peers = [s for s in like if s.program == program and s.dtype in dtypes]
        if peers:
            best = max(peers, key=lambda s: median(s.speeds))
            ratio = median(a / b for a, b in zip(speaker.speeds, best.speeds))
            kind = speaker.dtype if len(dtypes) == 1 else "any type"
            print(f"- {speaker.name}: {ratio:.2f} times the best {program} of {kind} ({best.name})")
