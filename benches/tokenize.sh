#!/usr/bin/env bash
# Encodes the same text with the same byte-level tokenizer by `cllm tokenize` and by the Python
# package `tokenizers`, in turns, each with all threads, checks that the ids are the same, and
# prints medians of MB/s, the share of the CPUs that was used, and the ratio to the package's best.
#
# Usage: benches/tokenize.sh [RUNS [MEGABYTES [IDS]]]     (5 runs of 100 MB with 8000 ids)
#
# The text is made of the embedded Bible's words: its own sentences, words drawn as often as they
# occur there, spellings that are nowhere else, numbers and words of other scripts, so that caches of
# words hold as much as with other text and no line comes twice.
#
# What the times hold: of `cllm`, the whole process: starting, loading the tokenizer, reading the
# text, writing and syncing the shard. Of the package: reading the text, cutting it into lines or
# chunks (at ends of lines, which changes no id) and encoding them, in batches of 16 MB; not starting,
# loading, nor taking the ids out of its Encoding objects. For a quiet machine.
set -euo pipefail
cd "$(dirname "$0")/.."
work=target/tokenize
. tests/support/python.sh
want_python "$work" benches/requirements-tokenize.txt
cllm=${CLLM:-target/release/cllm}
[ -n "${CLLM:-}" ] || cargo build --quiet --locked --release --package cllm
PYTHONPATH=benches/common PYTHONDONTWRITEBYTECODE=1 exec "$PYTHON" - \
    "$cllm" "$work" "${1:-5}" "${2:-100}" "${3:-8000}" <<'PYTHON'
import gzip
import hashlib
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import time
from array import array
from pathlib import Path
from statistics import median

import tokenizers
from runs import note, turns

cllm, work = sys.argv[1], Path(sys.argv[2])
runs, megabytes, vocabulary = map(int, sys.argv[3:6])
text, small, shards = work / f"text-{megabytes}.txt", work / "train.txt", work / "shards"
SCRIPTS = ["été", "größe", "naïve", "слово", "λόγος", "言葉", "단어", "שלום", "🙂", "½"]


def make_text():
    """Writes the text, the same each time."""
    dice = random.Random(20240801)
    book = gzip.decompress(Path("runner/data/bible-kjv.txt.gz").read_bytes()).decode()
    sentences = [line for line in book.splitlines() if line.strip()]
    words = book.split()
    letters = "etaoinshrdlucmfwypvbgkjqxz"

    def odd():
        kind = dice.random()
        if kind < 0.5:
            return "".join(dice.choices(letters, k=dice.randint(3, 9)))
        if kind < 0.8:
            return str(dice.randrange(10 ** dice.randint(1, 6)))
        return dice.choice(SCRIPTS) + dice.choice(["", ",", " - ", "'s", "..."])

    with open(text.with_suffix(".part"), "w", encoding="utf-8", newline="\n") as out:
        written = 0
        while written < megabytes * 1_000_000:
            line = dice.choices(words, k=dice.randint(10, 90))
            for _ in range(len(line) // 25 + 1):
                line[dice.randrange(len(line))] = odd()
            if dice.random() < 0.3:
                line.insert(dice.randrange(len(line)), dice.choice(sentences))
            written += out.write(" ".join(line) + dice.choice(["\n", "\n", "\n\n", "  \n"]))
    text.with_suffix(".part").rename(text)


def pieces(least):
    """Batches of some 16 MB of texts of at least so many bytes: cut before ends of lines, where words are cut anyway."""
    with open(text, encoding="utf-8", newline="") as file:
        whole = file.read()
    batch, held, start = [], 0, 0
    for border in re.finditer(r"(?<=\S)\n(?=\S)", whole):
        if border.start() - start >= least:
            batch.append(whole[start : border.start()])
            held, start = held + len(batch[-1]), border.start()
            if held > 16_000_000:
                yield batch
                batch, held = [], 0
    yield [*batch, whole[start:]]


def used(who):
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def measured(who, work):
    """Seconds, and the CPUs' share."""
    cpu, start = used(who), time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    return seconds, (used(who) - cpu) / seconds / len(os.sched_getaffinity(0))


def ours():
    # What is there already would not be made again.
    shutil.rmtree(shards, ignore_errors=True)
    command = [cllm, "tokenize", "--data", text, "--tokenizer", work / "tokenizer.json"]
    command += ["--val-fraction", "0", "--shard-tokens", "2000000000", "--out", shards]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def theirs(method, least, sink=None):
    tokenizer = tokenizers.Tokenizer.from_file(str(work / "tokenizer.json"))

    def encode():
        for batch in pieces(least):
            encodings = getattr(tokenizer, method)(batch)
            if sink is not None:
                for encoding in encodings:
                    sink(encoding.ids)

    return encode


if not text.exists():
    note(f"writing {text}")
    make_text()
with open(text, "rb") as file:
    # Vocabularies are learned from a part, which takes a while.
    small.write_bytes(file.read(10_000_000).rsplit(b"\n", 1)[0])
shutil.rmtree(work / "trained", ignore_errors=True)
command = [cllm, "tokenize", "--data", small, "--tokenizer", f"bpe:{vocabulary}", "--out", work / "trained"]
subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
(work / "tokenizer.json").write_bytes((work / "trained/tokenizer.json").read_bytes())

ours()
# A header of 1024 bytes, and the token that begins the document.
known = array("H", (shards / "train_000000.bin").read_bytes()[1026:])
LINES, CHUNKS = 1, 16_384
for least in (LINES, CHUNKS):
    found = array("H")
    theirs("encode_batch_fast", least, found.extend)()
    if found != known:
        at = next((i for i, (a, b) in enumerate(zip(found, known)) if a != b), min(len(found), len(known)))
        sys.exit(f"benches/tokenize.sh: {len(known)} ids of cllm's, {len(found)} of the package's: they differ at {at}")
digest = hashlib.sha256(known.tobytes()).hexdigest()[:16]
size = text.stat().st_size / 1e6
print(f"{size:.1f} MB, {len(known)} ids of {vocabulary}, the same on both sides (SHA-256 {digest}...)", flush=True)

CASES = {
    "cllm tokenize": None,
    "encode_batch_fast, chunks": ("encode_batch_fast", CHUNKS),
    "encode_batch_fast, lines": ("encode_batch_fast", LINES),
    "encode_batch, chunks": ("encode_batch", CHUNKS),
    "encode_batch, lines": ("encode_batch", LINES),
}
results = {case: [] for case in CASES}
for turn, case in turns(runs, CASES):
    if CASES[case] is None:
        seconds, share = measured(resource.RUSAGE_CHILDREN, ours)
    else:
        seconds, share = measured(resource.RUSAGE_SELF, theirs(*CASES[case]))
    results[case].append((size / seconds, share))
    note(f"run {turn} {case:<26} {size / seconds:8.1f} MB/s  {100 * share:5.0f}% of the CPUs")
own = results.pop("cllm tokenize")
print(f"{'':<26} {'MB/s':>8} {'CPUs used':>10} {'cllm is':>10}")
print(f"{'cllm tokenize':<26} {median(s for s, _ in own):>8.1f} {100 * median(c for _, c in own):>9.0f}%")
for case, of in results.items():
    ratio = median(a / b for (a, _), (b, _) in zip(own, of))
    print(f"{case:<26} {median(s for s, _ in of):>8.1f} {100 * median(c for _, c in of):>9.0f}% {ratio:>8.2f} x")
PYTHON
