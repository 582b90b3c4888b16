"""Runs cllm and PyTorch on the same works in turns and prints medians and ratios.

benches/peers/run.sh sets up what this needs; README.md beside it says what is compared.
"""

import argparse
import shlex
import sys
from pathlib import Path

import generation
import llmc
import start
from measure import Sample, run_cllm, torch_on
from settings import LIBRARIES, Setting, available
from table import Column, deviation, dump, print_table
from works import CLLM, MODELS, PEERS, STEPS, WORKS, Work, build, make_data, make_start, start_file

# Relative, of losses in fp32: two programs that add in different orders.
TOLERANCE = 1e-4

# Ways to run PyTorch.
KINDS = ("eager", "compiled")


def note(text: str) -> None:
    """Progress, apart from the tables."""
    print(text, file=sys.stderr, flush=True)


def check(columns: list[Column], work: Work, settings: list[Setting], args) -> None:
    """The losses of all 20 steps of the start file, once for each kind of arithmetic, on the
    most threads; compiled code is made here too, so that timed processes find it."""
    libraries = settings[-1].libraries
    for threads in args.threads:
        all_steps = threads == max(args.threads)
        for setting in settings:
            if setting.libraries != libraries or not (all_steps or setting.compiled):
                continue
            sample = torch_on(work, setting, threads, STEPS if all_steps else 2, args.via)
            note(f"{work.name}: {setting.name}, {threads} threads: loss {sample.losses[-1]:.6f}")
            for column in columns:
                same = column.setting and column.setting.flags() == setting.flags()
                if same and all_steps:
                    column.losses = sample.losses
    for column in columns:
        if column.program == "cllm" and column.threads == max(args.threads):
            sample = run_cllm(args.cllm, work, column.dtype, column.threads, STEPS, args.via)
            for other in columns:
                if other.program == "cllm" and other.dtype == column.dtype:
                    other.losses = sample.losses


def check_f32(column: Column, losses: list[float], work: Work) -> None:
    """Nothing is timed that computes something else: ends the program if the losses of a process
    in fp32 are not those of the start file. llm.c has other batches, and a check of its own."""
    if column.dtype != "f32" or column.program == "llm.c" or not losses:
        return
    differs = deviation(losses, start.losses(start_file(work.name)))
    if differs > TOLERANCE:
        raise SystemExit(
            f"{work.name}: {column.name}: losses differ from those of the start file by "
            f"{differs:.1e}, and {TOLERANCE} is allowed: {losses}"
        )


def time(columns: list[Column], work: Work, args) -> None:
    """All columns in turns, the other way round every second turn: what drifts hits all."""
    steps = work.warmup + work.timed
    for turn in range(args.runs):
        for column in columns if turn % 2 == 0 else columns[::-1]:
            sample = measure(column, work, steps, args)
            check_f32(column, sample.losses, work)
            column.samples.append(sample)
            speed = sample.tokens_per_s(column.tokens, work.warmup)
            note(f"{work.name}: turn {turn + 1}, {column.name}: {speed:.0f} tokens/s")


def measure(column: Column, work: Work, steps: int, args) -> Sample:
    if column.program == "cllm":
        return run_cllm(args.cllm, work, column.dtype, column.threads, steps, args.via)
    if column.program == "llm.c":
        return llmc.run(args.llmc, column.threads, steps, args.via)
    return torch_on(work, column.setting, column.threads, steps, args.via)


def columns_of(work: Work, settings: list[Setting], args) -> list[Column]:
    """Every program, setting and number of threads for a work."""
    columns = []
    for threads in args.threads:
        columns += [Column.cllm(work, dtype, threads) for dtype in ("f32", "bf16")]
        columns += [Column.torch(work, setting, threads) for setting in settings]
        if args.llmc and work.name == llmc.WORK:
            columns.append(Column.llmc(work, threads))
    return columns


def parse() -> argparse.Namespace:
    def names(of):
        return lambda text: [of(part) for part in text.split(",")]

    def one_of(known):
        def of(name: str) -> str:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(known)}")
            return name

        return of

    def work(name: str) -> Work:
        every = WORKS | MODELS
        if name not in every:
            known = ", ".join(every)
            raise argparse.ArgumentTypeError(f"there is no work {name}; there are {known}")
        return every[name]

    def positive(text: str) -> int:
        if not text.isdigit() or int(text) == 0:
            raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
        return int(text)

    parser = argparse.ArgumentParser(prog="benches/peers/run.sh", description=__doc__)
    parser.add_argument("--works", type=names(work), default=[WORKS["A"]], metavar="NAME,...",
                        help=f"{', '.join(WORKS | MODELS)} (A)")
    parser.add_argument("--runs", type=positive, default=5, help="repeats of each (5)")
    parser.add_argument("--threads", type=names(positive), default=[1, 2], metavar="N,...",
                        help="numbers of threads (1,2)")
    parser.add_argument("--kinds", type=names(one_of(KINDS)), default=list(KINDS),
                        metavar="KIND,...", help="eager, compiled (both)")
    parser.add_argument("--libraries", type=names(one_of(LIBRARIES)), default=list(LIBRARIES),
                        metavar="NAME,...", help=f"{', '.join(LIBRARIES)} (all)")
    parser.add_argument("--llmc", type=Path, metavar="PATH",
                        help="folder of a built llm.c, to run its trainer on work B64 too")
    parser.add_argument("--cllm", type=Path, help="a built binary, instead of building one")
    parser.add_argument("--no-check", action="store_true",
                        help="no run of all 20 steps of a start file before the timed ones")
    parser.add_argument("--via", type=shlex.split, default=[], metavar="COMMAND",
                        help="starts every process of the comparison, such as 'taskset -c 0,1'")
    return parser.parse_args()


def main() -> None:
    args = parse()
    build(only_inputs=args.cllm is not None)
    args.cllm = args.cllm or CLLM
    make_data(args.cllm)
    settings, missing = available(args.kinds)
    settings = [setting for setting in settings if setting.libraries in args.libraries]
    for words in missing:
        note(f"run.sh: {words}")
    if not settings:
        raise SystemExit("run.sh: of --kinds and --libraries nothing is left that can be had here")
    for work in args.works:
        make_start(work, args.cllm, args.via)
        if work.name in MODELS:
            generation.compare(work, settings, args, note)
            continue
        columns = columns_of(work, settings, args)
        if args.llmc and work.name == llmc.WORK:
            llmc.prepare(args.llmc, work, settings[0], max(args.threads), args.via)
        if not args.no_check:
            check(columns, work, settings, args)
            for column in columns:
                check_f32(column, column.losses, work)
        time(columns, work, args)
        print_table(work, columns, missing)
        (PEERS / f"{work.name}.json").write_text(dump(columns))


if __name__ == "__main__":
    main()
