"""The table of one work: medians, shares of the peak, memory, losses, ratios."""

import json
from dataclasses import dataclass, field
from statistics import median

import start
from measure import Sample
from settings import Setting
from works import Work, start_file


@dataclass
class Column:
    """One program in one setting on some threads, and what it did. A line of the table."""

    program: str
    dtype: str
    threads: int
    # Tokens of a step, and the formula's floating-point operations of one.
    tokens: int
    flops: float
    setting: Setting | None = None
    # Losses of all steps of the start file, where a process went through them.
    losses: list[float] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    @staticmethod
    def of(work: Work, **more) -> "Column":
        c = start.config(start_file(work.name))
        tokens = c["batch"] * c["tokens_per_sequence"]
        return Column(tokens=tokens, flops=c["flops_per_token"], **more)

    @staticmethod
    def cllm(work: Work, dtype: str, threads: int) -> "Column":
        return Column.of(work, program="cllm", dtype=dtype, threads=threads)

    @staticmethod
    def torch(work: Work, setting: Setting, threads: int) -> "Column":
        dtype = "f32" if setting.is_f32 else "bf16"
        return Column.of(work, program="PyTorch", dtype=dtype, threads=threads, setting=setting)

    @staticmethod
    def llmc(work: Work, threads: int) -> "Column":
        return Column.of(work, program="llm.c", dtype="f32", threads=threads)

    @property
    def name(self) -> str:
        setting = self.setting.name if self.setting else self.dtype
        return f"{self.program} {setting}, {on_threads(self.threads)}"

    def speeds(self, warmup: int) -> list[float]:
        return [sample.tokens_per_s(self.tokens, warmup) for sample in self.samples]


def on_threads(count: int) -> str:
    """A number of threads in words."""
    return "1 thread" if count == 1 else f"{count} threads"


def ratio(ours: Column, theirs: Column, warmup: int) -> float:
    """How many times as fast `ours` is: the median over turns."""
    return median(a / b for a, b in zip(ours.speeds(warmup), theirs.speeds(warmup)))


def deviation(losses: list[float], reference: list[float]) -> float:
    """Largest relative difference of two lists of losses, as far as both go."""
    return max(abs(a / b - 1.0) for a, b in zip(losses, reference))


def print_table(work: Work, columns: list[Column], missing: list[str]) -> None:
    """Prints the table of a work in Markdown."""
    reference = start.losses(start_file(work.name))
    print(f"\n### {work.name}: {work.title}\n")
    for words in missing:
        print(f"Measured {words}.\n")
    header = ["", "threads", "tokens/s", "lowest to highest", "of the peak", "peak memory"]
    header += ["loss", "differs by"]
    print("| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
    for column in columns:
        print(line(column, columns, work, reference))
    print()
    for threads in sorted({column.threads for column in columns}):
        print_ratios([column for column in columns if column.threads == threads], work)


def line(column: Column, columns: list[Column], work: Work, reference: list[float]) -> str:
    speeds = column.speeds(work.warmup)
    peers = (column.dtype, column.threads)
    peak = median(
        sample.peak_gflops * 1e9
        for other in columns
        if other.program == "cllm" and (other.dtype, other.threads) == peers
        for sample in other.samples
    )
    losses = column.losses or column.samples[-1].losses[: len(reference)]
    if column.program == "llm.c":
        # Other batches and rates than the start file's: llmc.py compares its losses.
        shown = ["", ""]
    else:
        shown = [f"{losses[-1]:.5f} after {len(losses)}", f"{deviation(losses, reference):.1e}"]
    setting = f" {column.setting.name}" if column.setting else f" {column.dtype}"
    cells = [
        column.program + setting,
        f"{column.threads}",
        f"{median(speeds):,.0f}",
        f"{min(speeds):,.0f} to {max(speeds):,.0f}",
        f"{100 * median(speeds) * column.flops / peak:.1f} %",
        f"{median(s.peak_rss for s in column.samples) / 1e6:,.0f} MB",
        *shown,
    ]
    return "| " + " | ".join(cells) + " |"


def print_ratios(columns: list[Column], work: Work) -> None:
    """cllm against the best of PyTorch, and llm.c, on one number of threads."""
    speed = lambda column: median(column.speeds(work.warmup))
    torch = [column for column in columns if column.program == "PyTorch"]
    f32 = [column for column in torch if column.dtype == "f32"]
    for ours in (column for column in columns if column.program == "cllm"):
        for kind, peers in (("f32", f32), ("any", torch)):
            if not peers:
                continue
            best = max(peers, key=speed)
            least = min(peers, key=lambda c: median(s.peak_rss for s in c.samples))
            memory = median(s.peak_rss for s in ours.samples) / median(
                s.peak_rss for s in least.samples
            )
            print(
                f"- {ours.name}: {ratio(ours, best, work.warmup):.2f} times the best PyTorch of "
                f"{kind} setting ({best.setting.name}), with {memory:.2f} of the memory that the "
                "smallest takes"
            )
        for other in (column for column in columns if column.program == "llm.c"):
            print(f"- {ours.name}: {ratio(ours, other, work.warmup):.2f} times llm.c")


def dump(columns: list[Column]) -> str:
    """All samples as JSON, for looking into them later."""
    return json.dumps(
        [
            {
                "name": column.name,
                "threads": column.threads,
                "losses": column.losses,
                "samples": [vars(sample) for sample in column.samples],
            }
            for column in columns
        ]
    )
