"""Damages one good file of every kind that cllm reads, and has the program read each damaged copy.

Called by tests/hostile.sh, which says what is wanted: hostile.py CLLM WORK [READER...]
"""

import json
import multiprocessing
import os
import random
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

CLLM, WORK, ONLY = os.path.abspath(sys.argv[1]), Path(sys.argv[2]).resolve(), sys.argv[3:]
MB = 1 << 20
MOST_MEMORY = 64 * MB
# Of the CPU, for the machine may have other work; and until it is said to have no end.
MOST_SECONDS, END = 10, 120
# Addresses: what is asked for beyond that ends the process.
MOST_ADDRESSES = 3 << 30
DEPTH, MANY = 100_000, 1_000_000
HEAD = 512
SAMPLE = 400


def run(*args) -> None:
    subprocess.run([CLLM, *map(str, args)], check=True, stdout=subprocess.DEVNULL)


def make_good(at: Path) -> None:
    """Writes a good file of every kind."""
    lines = [f"In the beginning God created the heaven and the earth. {n}" for n in range(400)]
    (at / "text.txt").write_text("\n".join(lines))
    (at / "lines.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines[:40]))
    usual = "--val-fraction 0 --sample-tokens 0 --seed 3 --threads 1 --quiet --warmup-steps 1".split()
    usual = ["--batch-size", 2, "--data", at / "text.txt", "--tuning", "off", *usual]
    model = "--max-steps 3 --block-size 16 --n-layer 1 --n-embd 8 --n-head 2".split()
    trace = ["--trace", at / "trace.json", "--trace-steps", 2, "--tensorboard"]
    run("train", *usual, *model, "--tokenizer", "bpe:262", *trace, "--out-dir", at / "gpt2")
    llama = "--norm rms --positions rotary --activation swiglu --bias false --tokenizer bytes".split()
    run("train", *usual, *model, *llama, "--out-dir", at / "llama")
    lora = ["--base", at / "llama", "--max-steps", 2, "--lora-rank", 2]
    run("train", *usual, *lora, "--out-dir", at / "lora")
    run("train", *usual, *model, "--tokenizer", "chars", "--out-dir", at / "chars")
    run("train", *usual, *model, "--tokenizer", "bytes", "--logit-softcap", 15, "--out-dir", at / "capped")
    for optimizer in ("adamw8", "momentum"):
        run("train", *usual, *model, "--tokenizer", "bytes", "--optimizer", optimizer, "--out-dir", at / optimizer)
    for name in ("gpt2", "llama"):
        run("export", "--checkpoint", at / name, "--out", at / f"hf-{name}")
        run("export", "--checkpoint", at / name, "--format", "gguf", "--out", at / f"{name}.gguf")
    run("export", "--checkpoint", at / "lora", "--format", "peft", "--out", at / "peft")
    run("tokenize", "--data", at / "text.txt", "--tokenizer", "bytes", "--out", at / "shards")
    ends = {"bos_token_id": 0, "eos_token_id": [0, 11, 12], "temperature": 0.6}
    (at / "hf-gpt2" / "generation_config.json").write_text(json.dumps(ends))
    # Two files of weights and their index, of the same model.
    parts = at / "hf-parts"
    shutil.copytree(at / "hf-llama", parts)
    (parts / "model.safetensors").rename(parts / "model-00001-of-00001.safetensors")
    with open(parts / "model-00001-of-00001.safetensors", "rb") as weights:
        names = json.loads(weights.read(int.from_bytes(weights.read(8), "little")))
    names.pop("__metadata__", None)
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (parts / "model.safetensors.index.json").write_text(json.dumps(index))
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content | trim }}]"
        "{% else %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
    ).replace("{% generation %}", "").replace("{% endgeneration %}", "")
    usage = {"bos_token": "<|endoftext|>", "eos_token": {"content": "<|endoftext|>"}, "chat_template": template}
    (at / "gpt2" / "tokenizer_config.json").write_text(json.dumps(usage))
    talk = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "God"}]
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": [1]}'}}
    calls = [{"role": "user", "content": [{"type": "text", "text": "Who?"}]}]
    calls += [{"role": "assistant", "content": None, "tool_calls": [call]}]
    calls += [{"role": "tool", "tool_call_id": "c", "name": "f", "content": "God"}, talk[1]]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    # Each value of the first line is replaced.
    examples = [{"messages": calls, "tools": tools}, {"prompt": talk[:1], "completion": talk[1:]}, {"messages": talk}]
    examples += [{"prompt": "Who?", "completion": " God"}, {"text": "In the"}]
    (at / "examples.jsonl").write_text("".join(json.dumps(one) + "\n" for one in examples))
    questions = [
        {"ctx": "In the", "endings": [" end", " beginning"], "label": 1},
        {"question": "Who", "choices": {"text": ["God", "I"], "label": ["A", "B"]}, "answerKey": "A"},
    ]
    (at / "questions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in questions))
    (at / "run.toml").write_text("preset = 'tiny'\nn-layer = 1\nlr = 1e-3\ndata = ['text.txt']\nbias = false\n")
    blocking = subprocess.run(
        [CLLM, "tune", "--help"], check=True, capture_output=True, text=True
    )
    assert blocking.stdout
    (at / "tune.toml").write_text(TUNED)
    for run in ("gpt2", "chars"):
        # Without their checksum, which would refuse all that is done to them: what reads them is tried.
        settings = at / run / "settings.json"
        fields, _, _ = settings.read_text().partition(',\n  "crc32": ')
        assert fields != settings.read_text()
        settings.write_text(fields + "\n}\n")
    import gzip

    (at / "text.gz").write_bytes(gzip.compress((at / "text.txt").read_bytes(), mtime=0))


TUNED = """version = 1

[[set]]
cpu = "none"
isa = "avx2"
dtype = "f32"
threads = 1
n_layer = 1
n_embd = 8
d_ff = 32
vocab_size = 262
rows = 32
row_block = 96
weight_rows = 256
weight_cols = 256
tiles_per_worker = 4
logits_blocks = 2
update_floats = 16384
fresh_floats = 33554432
fresh_rows = 384
ratio = 0.9375
"""

HERE, OUT = "HERE", "OUT"


class Reader:
    """A file that is damaged, and the commands that read it. `sealed`: every change but those `allowed` must be an
    error."""

    def __init__(self, name, file, *args, sealed=False, kind="text", share=1.0, allowed=()):
        self.name, self.file, self.args = name, file, args
        self.sealed, self.kind, self.share, self.allowed = sealed, kind, share, allowed


def readers() -> list:
    binary = {"kind": "binary"}
    inspect = ("inspect", "--tensors")
    tiny = "--max-steps 1 --warmup-steps 0 --threads 1 --quiet --val-fraction 0 --sample-tokens 0".split()
    tiny += ["--batch-size", "1", "--tuning", "off", "--out-dir", OUT]
    fine = ("finetune", "--base", f"{HERE}/gpt2", "--data", f"{HERE}/examples.jsonl", "--lora-rank", "1", *tiny)
    train = ("train", "--data", f"{HERE}/text.txt", "--n-layer", "1", "--n-embd", "8", "--n-head", "2")
    train += ("--block-size", "16", *tiny)
    score = ("eval", "--checkpoint", f"{HERE}/gpt2", "--threads", "1", "--choices", f"{HERE}/questions.jsonl")
    talk = ("generate", "--checkpoint", f"{HERE}/gpt2", "--threads", "1", "--tokens", "2")
    bring = ("import", "--out-dir", OUT)
    plan = ("plan", "--vocab-size", "300", "--no-estimate")
    return [
        Reader("checkpoint v1", "gpt2/step-3.cllm", *inspect, f"{HERE}/gpt2/step-3.cllm", sealed=True, **binary),
        Reader("checkpoint v2", "llama/step-3.cllm", *inspect, f"{HERE}/llama/step-3.cllm", sealed=True, **binary),
        Reader("checkpoint v3", "lora/step-2.cllm", *inspect, f"{HERE}/lora/step-2.cllm", sealed=True, **binary),
        *(Reader(f"checkpoint {name}", f"{run}/step-3.cllm", *inspect, f"{HERE}/{run}/step-3.cllm", sealed=True, **binary)
          for name, run in (("v4", "capped"), ("v5 adamw8", "adamw8"), ("v5 momentum", "momentum"))),
        Reader("resumed moments", "adamw8/step-3.cllm", "train", "--resume", "--out-dir", f"{HERE}/adamw8", "--max-steps",
               "3", sealed=True, share=0.2, allowed=("nothing there",), **binary),
        Reader("its base", "lora/base.cllm", "generate", "--checkpoint", f"{HERE}/lora", "--tokens", "1",
               "--threads", "1", sealed=True, share=0.2, **binary),
        Reader("run's checkpoint", "gpt2/step-3.cllm", *talk, share=0.2, **binary),
        Reader("run folder", "gpt2/settings.json", "inspect", f"{HERE}/gpt2"),
        Reader("resumed settings", "chars/settings.json", "train", "--resume", "--out-dir", f"{HERE}/chars", share=0.1),
        Reader("token shard", "shards/train_000000.bin", "inspect", f"{HERE}/shards/train_000000.bin", **binary),
        Reader("shard in training", "shards/train_000000.bin", *train[:1], "--data", f"{HERE}/shards", *train[3:],
               "--tokenizer", f"{HERE}/shards/tokenizer.json", share=0.1, **binary),
        Reader("shards' meta.json", "shards/meta.json", *train[:1], "--data", f"{HERE}/shards", *train[3:],
               "--tokenizer", f"{HERE}/shards/tokenizer.json", share=0.2),
        Reader("tokenizer BPE", "gpt2/tokenizer.json", "inspect", f"{HERE}/gpt2/tokenizer.json"),
        Reader("tokenizer chars", "chars/tokenizer.json", "inspect", f"{HERE}/chars/tokenizer.json"),
        Reader("tokenizer in use", "gpt2/tokenizer.json", "generate", "--checkpoint", f"{HERE}/gpt2", "--threads",
               "1", "--tokens", "2", "--prompt", "In the <|endoftext|> 12", share=0.5),
        Reader("tokenizer_config", "gpt2/tokenizer_config.json", *fine),
        Reader("chat template", "gpt2/chat_template.jinja", *fine, share=0.5),
        Reader("config.json", "hf-llama/config.json", *bring, f"{HERE}/hf-llama"),
        Reader("config.json GPT-2", "hf-gpt2/config.json", *bring, f"{HERE}/hf-gpt2"),
        Reader("hf tokenizer", "hf-gpt2/tokenizer.json", *bring, f"{HERE}/hf-gpt2", share=0.5),
        Reader("hf usage", "hf-gpt2/tokenizer_config.json", *bring, f"{HERE}/hf-gpt2", share=0.5),
        Reader("generation_config", "hf-gpt2/generation_config.json", *bring, f"{HERE}/hf-gpt2"),
        Reader("index.json", "hf-parts/model.safetensors.index.json", *bring, f"{HERE}/hf-parts"),
        Reader("safetensors", "hf-llama/model.safetensors", *bring, f"{HERE}/hf-llama", **binary),
        Reader("safetensors seen", "hf-llama/model.safetensors", *inspect, f"{HERE}/hf-llama/model.safetensors",
               **binary),
        Reader("PEFT config", "peft/adapter_config.json", *bring, "--base", f"{HERE}/llama", f"{HERE}/peft"),
        Reader("PEFT weights", "peft/adapter_model.safetensors", *bring, "--base", f"{HERE}/llama", f"{HERE}/peft",
               **binary),
        Reader("GGUF", "llama.gguf", *bring, f"{HERE}/llama.gguf", **binary),
        Reader("GGUF GPT-2", "gpt2.gguf", *bring, f"{HERE}/gpt2.gguf", share=0.5, **binary),
        Reader("GGUF seen", "llama.gguf", *inspect, f"{HERE}/llama.gguf", share=0.5, **binary),
        Reader("TOML settings", "run.toml", *plan, "--config", f"{HERE}/run.toml"),
        Reader("tuning file", "tune.toml", *plan[:1], "--vocab-size", "300", "--tuning", f"{HERE}/tune.toml"),
        Reader("metrics.jsonl", "gpt2/metrics.jsonl", "report", f"{HERE}/gpt2", "--force", "--out", f"{OUT}.html"),
        Reader("report's settings", "gpt2/settings.json", "report", f"{HERE}/gpt2", "--force", "--out", f"{OUT}.html",
               share=0.3),
        Reader("trace", "trace.json", "simulate", "--workers", "1,2", "--trace", f"{HERE}/trace.json"),
        Reader("trace seen", "trace.json", "inspect", f"{HERE}/trace.json", share=0.3),
        Reader("text", "text.txt", "tokenize", "--data", f"{HERE}/text.txt", "--tokenizer", "bpe:260", "--out", OUT,
               share=0.3),
        Reader("JSON lines", "lines.jsonl", "tokenize", "--data", f"{HERE}/lines.jsonl", "--tokenizer", "chars",
               "--out", OUT),
        Reader("gz", "text.gz", "tokenize", "--data", f"{HERE}/text.gz", "--tokenizer", "bytes", "--out", OUT,
               kind="binary", share=0.3),
        Reader("instructions", "examples.jsonl", *fine),
        Reader("multiple choice", "questions.jsonl", *score),
        Reader("TensorBoard", "chars/tensorboard/events.out.tfevents.1.cllm.1.0", "train", "--resume", "--out-dir",
               f"{HERE}/chars", kind="binary", share=0.2),
    ]


VALUES = ["null", "true", "-1", "0", "1", "1.5", "1e400", "1e308", "-1e-400", "4294967295", "9007199254740993",
          "18446744073709551615", "9" * 400, '""', '"\\u0000"', '"\\ud800"', '"/../../x"', "[]", "{}", "[[]]",
          '[{"a":[0,"x",null]}]', '{"":{"":0}}', '"' + "x" * 70_000 + '"']
LARGE = ["[" * DEPTH + "]" * DEPTH, '{"a":' * DEPTH + "0" + "}" * DEPTH, "[" + "0," * MANY + "0]",
         "[" + '{"":0},' * (MANY // 8) + "0]", "[" + "{},[]," * (MANY // 6) + "0]", "9" * MANY, '"' + "x" * MANY + '"',
         "{" + ",".join(f'"{n}":0' for n in range(MANY // 10)) + "}"]


def structural(text: bytes, share: float):
    """A JSON file, or the first line of one of lines, with each of its values replaced."""
    try:
        first, rest = json.loads(text), b""
    except ValueError:
        try:
            line, _, rest = text.partition(b"\n")
            first, rest = json.loads(line), b"\n" + rest
        except ValueError:
            return
    mark = "\x00mark\x00"
    places = []

    def walk(value, path):
        places.append(path)
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for n, (key, inner) in enumerate(items):
            if n < 24:
                walk(inner, (*path, key))

    walk(first, ())
    chosen = random.Random(7)
    for path in places[: max(12, int(100 * share))]:
        def put(value, path=path):
            if not path:
                return value
            copy = json.loads(json.dumps(first))
            at = copy
            for key in path[:-1]:
                at = at[key]
            at[path[-1]] = mark
            return json.dumps(copy).replace(json.dumps(mark), value)

        for value in VALUES:
            yield f"{path} = {value[:30]}", put(value).encode("utf-8", "surrogatepass") + rest
        if chosen.random() < 0.06:
            for value in LARGE:
                yield f"{path} = {value[:12]}... of {len(value)}", put(value).encode() + rest
        if path and isinstance(path[-1], str):
            copy = json.loads(json.dumps(first))
            at = copy
            for key in path[:-1]:
                at = at[key]
            value = json.dumps(at.pop(path[-1]))
            yield f"without {path}", json.dumps(copy).encode() + rest
            at["\x00mark"] = 0
            twice = f"{json.dumps(path[-1])}: {value}, {json.dumps(path[-1])}: {value}"
            yield f"{path} twice", json.dumps(copy).replace('"\\u0000mark": 0', twice).encode() + rest


TEMPLATES = [
    "{{ 'x' * 1000000000 }}", "{{ range(100000000) | list }}", "{{ [0] * 1000000000 }}",
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(0) }}", "{{ '%0999999999d' | format(1) }}",
    "{% set ns = namespace(s='x') %}{% for a in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
    "{% set ns = namespace(s=[0]) %}{% for a in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
    "{% for a in range(9999) %}{% for b in range(9999) %}xxxxxxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
    "{{ " + "(" * DEPTH + "0" + ")" * DEPTH + " }}", "{% if 1 %}" * DEPTH, "{{ " + "[" * DEPTH + " }}",
    "{{ " + "-" * DEPTH + "1 }}", "{{ " + "not " * DEPTH + "1 }}", "{{ 1" + " + 1" * DEPTH + " }}",
    "{{ x" + ".a" * DEPTH + " }}", "{{ x" + "|trim" * DEPTH + " }}", "{{ 'x'.center(1000000000) }}",
    "{{ 'x' | indent(1000000000) }}", "{{ 'x'.ljust(1000000000) }}", "{{ 10 ** 10 ** 10 }}", "{{ 1 // 0 }}",
    "{{ 1 % 0 }}", "{{ -9223372036854775808 // -1 }}", "{{ 'a' | replace('', 'b' * 100000) }}",
    "{{ 'x'.zfill(1000000000) }}", "{{ messages | tojson(indent=1000000000) }}", "{{ (1, 2)[::0] }}",
    "{{ 'x'[9223372036854775807:-9223372036854775808:-1] }}", "{{ 'abc'.split('') }}", "{{ ('x' * 100000).replace('x', 'x' * 100000) }}",
    "{{ messages | batch(1000000000, 'x') }}", "{{ messages | slice(1000000000) }}", "{{ lipsum(1000000) }}",
    "{% include 'chat' %}", "{% extends 'chat' %}", "{% import 'chat' as c %}", "{{ self.x() }}", "{{ loop.previtem }}",
    "{{ messages | map(attribute='content') | join('x' * 10000000) }}", "{% block a %}{{ self.a() }}{% endblock %}",
    "{% for a in messages recursive %}{{ loop(messages) }}{% endfor %}", "{% call f() %}{% endcall %}",
    "{% set x = 'x' %}{% for a in range(40) %}{% set x = x ~ x %}{{ x ~ x }}{% endfor %}",
    "{% set n = namespace(s=[0]) %}{% for a in range(9999) %}{% set n.s = [n.s] %}{% endfor %}{{ n.s }}",
    "{% set n = namespace(s=[0]) %}{% for a in range(9999) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s }}",
    "{% set n = namespace() %}{% set n.n = n %}{{ n }}", "{% for a in messages %}{{ loop.cycle() }}{% endfor %}",
    "{% macro f(x) %}{{ f([x, x]) }}{% endmacro %}{{ f([0]) }}", "{{ ([0] * 100000000) ~ '' }}",
    "{{ {'a': {'b': 1}} " + "- " * DEPTH + "1 }}",
]


def damaged(reader: Reader, good: bytes):
    """Damaged copies, each with what was done to it. What is no bytes is what lies in the file's place."""
    share, size, chosen = reader.share, len(good), random.Random(5)
    step = max(1, round(64 / share)) if share < 1 else 64
    for length in [*range(0, size, step), *range(max(0, size - int(64 * share)), size)]:
        yield f"cut to {length} bytes", good[:length]
    head = min(size, HEAD)
    bits = [*range(head * 8)] if share == 1 else chosen.sample(range(head * 8), int(head * 8 * share))
    if size > head:
        beyond = range(head * 8, size * 8)
        bits += chosen.sample(beyond, min(len(beyond), int(SAMPLE * share)))
    for bit in bits:
        copy = bytearray(good)
        copy[bit // 8] ^= 1 << bit % 8
        yield f"bit {bit} flipped", bytes(copy)
    if reader.kind == "binary":
        unaligned = reader.name.startswith("GGUF")
        places = range(0, head, 1 if unaligned else 4)
        if share < 1:
            places = sorted(chosen.sample(places, int(len(places) * share)))
        for at in places:
            for width in (2, 4, 8):
                top = 1 << width * 8 - 1
                for value in (0, 1, top - 1, top, 2 * top - 1):
                    copy = good[:at] + value.to_bytes(width, "little") + good[at + width:]
                    if copy != good and len(copy) == size:
                        yield f"{width} bytes at {at} = {value:#x}", copy
    else:
        yield from structural(good, share)
    if "template" in reader.name or "config" in reader.name and "gpt2" in reader.file:
        for source in TEMPLATES:
            text = source if "jinja" in reader.file else json.dumps({"chat_template": source})
            yield f"template {source[:50]}", text.encode()
    if reader.file.endswith(".toml"):
        for text in ("a = " + "[" * DEPTH, "a" + ".a" * DEPTH + " = 1", "[" + "a." * DEPTH + "a]", "seed = " + "9" * MANY,
                     "seed = '" + "x" * MANY, "a = {" + "b={" * DEPTH, "set = [" + "{}," * MANY + "]",
                     "version = 1\n" + "[[set]]\n" * (MANY // 10), "lr = 1e999", "lr = nan", "n-layer = -1"):
            yield f"TOML {text[:20]}", text.encode()
    for value in LARGE:
        yield f"{value[:12]}... of {len(value)}", value.encode()
    if "jsonl" in reader.file:
        yield "a long line", b'{"text": "' + b"x" * (8 * MB) + b'"}'
        yield "many lines", b"{}\n" * MANY
    for what, content in (
        ("zero bytes", bytes(MANY)), ("bytes of ones", b"\xff" * MANY), ("no UTF-8", b"\xc3\x28" * 1000),
        ("UTF-16", b"\xff\xfe" + "{}".encode("utf-16-le")), ("noise", chosen.randbytes(MB)), ("NUL", b"\0"),
        ("zeros behind it", good + bytes(1000)), ("twice", good + good), ("its head and noise", good[:64] + chosen.randbytes(MB)),
    ):
        yield what, content
    for what in ("a folder", "a link to itself", "an endless file", "nothing there"):
        yield what, what


# What is no file has no end, which data may not have either: `cat` reads them for as long.
STREAMS = ("text", "gz")


def lay(path: Path, content) -> int:
    """Puts a damaged copy at `path`; its size."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        path.rmdir()
    if isinstance(content, bytes):
        path.write_bytes(content)
        return len(content)
    if content == "a folder":
        path.mkdir()
    elif content == "a link to itself":
        path.symlink_to(path.name)
    elif content == "an endless file":
        path.symlink_to("/dev/zero")
    return 0


def spawn(args: list, log: Path) -> tuple:
    """Runs the program: its status (negative for signals), seconds of the CPU, largest memory, standard error."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    actions = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0), (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
               (os.POSIX_SPAWN_OPEN, 2, str(log), flags, 0o644)]
    child = os.posix_spawn(CLLM, [CLLM, *args], os.environ, file_actions=actions)
    killer = threading.Timer(END, os.kill, (child, 9))
    killer.start()
    _, status, used = os.wait4(child, 0)
    killer.cancel()
    said = log.read_text(errors="replace")
    return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, said


def fault(reader: Reader, what: str, code: int, seconds: float, memory: int, said: str) -> str:
    """What is wrong with how the program ended; nothing if it ended as it should."""
    lines = said.removesuffix("\n").split("\n")
    if code == -9:
        return "no end"
    if seconds > MOST_SECONDS:
        return f"{seconds:.1f} seconds"
    if code < 0:
        return f"signal {-code}"
    if "internal error" in said or "panicked" in said or "overflowed its stack" in said:
        return "panic"
    if code not in (0, 1, 2):
        return f"status {code}"
    if code and not all(line.startswith("cllm: ") and line.isprintable() for line in lines):
        return "an error without its line"
    if len(said) > 8192:
        return f"an error of {len(said)} characters"
    if reader.sealed and code == 0 and what not in reader.allowed:
        return "accepted"
    if memory > MOST_MEMORY:
        return f"{memory / MB:.0f} MB above the file's size"
    return ""


def check(job: tuple) -> dict:
    """Reads all damaged copies of one share of one reader's."""
    begin, (number, part, parts) = time.monotonic(), job
    reader = readers()[number]
    resource.setrlimit(resource.RLIMIT_AS, (MOST_ADDRESSES, MOST_ADDRESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    here = WORK / f"at-{number}-{part}"
    shutil.copytree(WORK / "good", here)
    out, file, log = here / "out", here / reader.file, here / "log"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        file.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}")
        if "tfevents" in reader.file:
            shutil.copy(next((WORK / "good/gpt2/tensorboard").iterdir()), file)
    good = file.read_bytes()
    args = [arg.replace(HERE, str(here)).replace(OUT, str(out)) for arg in reader.args]
    done = {"cases": 0, "errors": 0, "accepted": 0, "memory": 0, "slowest": 0.0, "slowest what": "", "faults": []}
    before = spawn(["--version"], log)[2]
    code, _, _, said = spawn(args, log)
    if code != 0:
        done["faults"].append(f"{reader.name}: the good file is refused: {said}")
    for n, (what, content) in enumerate(damaged(reader, good)):
        if n % parts != part or content == good or content == "an endless file" and reader.name in STREAMS:
            continue
        shutil.rmtree(out, ignore_errors=True)
        if "--resume" in args:
            run_folder = reader.file.split("/")[0]
            shutil.rmtree(here / run_folder)
            shutil.copytree(WORK / "good" / run_folder, here / run_folder)
            file.parent.mkdir(exist_ok=True)
        size = lay(file, content)
        code, seconds, memory, said = spawn(args, log)
        memory = max(0, memory - before - size)
        done["cases"] += 1
        done["accepted" if code == 0 else "errors"] += 1
        done["memory"] = max(done["memory"], memory)
        if seconds > done["slowest"]:
            done["slowest"], done["slowest what"] = seconds, what
        wrong = fault(reader, what, code, seconds, memory, said)
        if wrong:
            done["faults"].append(f"{reader.name}: {what}: {wrong}: {said.strip()[:300]}")
            if isinstance(content, bytes) and len(done["faults"]) < 20:
                kept = WORK / "faults" / f"{number}-{n}"
                kept.write_bytes(content)
    shutil.rmtree(here)
    return {"number": number, "seconds": time.monotonic() - begin, **done}


def main() -> None:
    shutil.rmtree(WORK, ignore_errors=True)
    (WORK / "good").mkdir(parents=True)
    (WORK / "faults").mkdir()
    os.environ["XDG_CONFIG_HOME"] = str(WORK / "config")
    make_good(WORK / "good")
    begin, all_readers = time.monotonic(), readers()
    parts = 4
    jobs = [(n, part, parts) for n, one in enumerate(all_readers) for part in range(parts)
            if not ONLY or any(word in one.name for word in ONLY)]
    sums = {}
    with multiprocessing.Pool(int(os.environ.get("JOBS", os.cpu_count() or 1)), maxtasksperchild=1) as pool:
        for done in pool.imap_unordered(check, jobs, chunksize=1):
            total = sums.setdefault(done.pop("number"), {"faults": [], "slowest": 0.0, "memory": 0})
            if done["slowest"] > total["slowest"]:
                total["slowest"], total["slowest what"] = done["slowest"], done["slowest what"]
            total["memory"] = max(total["memory"], done["memory"])
            total["faults"] += done["faults"]
            for key in ("cases", "errors", "accepted"):
                total[key] = total.get(key, 0) + done[key]
            if os.environ.get("VERBOSE"):
                print(done["cases"], f"{done['seconds']:.1f} s", *done["faults"][:40], sep="\n", file=sys.stderr, flush=True)
    print(f"{'reader':<18} {'cases':>7} {'errors':>7} {'accepted':>8} {'MB more':>8} {'slowest':>8}")
    for number, total in sorted(sums.items()):
        print(f"{all_readers[number].name:<18} {total['cases']:>7} {total['errors']:>7} {total['accepted']:>8} "
              f"{total['memory'] / MB:>8.1f} {total['slowest']:>6.2f} s  {total['slowest what'][:40]}")
    faults = [fault for total in sums.values() for fault in total["faults"]]
    cases = sum(total["cases"] for total in sums.values())
    print(f"{cases} damaged files in {time.monotonic() - begin:.0f} s, {len(faults)} faults")
    if faults:
        print("\n".join(faults[:200]), file=sys.stderr)
        sys.exit(f"damaged files of the faults are in {WORK / 'faults'}")


main()
