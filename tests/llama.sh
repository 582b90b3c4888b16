#!/usr/bin/env bash
# Exports models of every family and every kind of tokenizer and weight to GGUF, loads them with
# llama.cpp, and compares: tokens of a text, its loss, and what follows a prompt. llama.cpp's files of 4 to
# 6 bits are imported, and every weight compared with ggml's own. Ends with an error if they differ.
#
# Usage: tests/llama.sh     (some minutes the first time: llama.cpp is built from source)
#
# Needs Rust, a C++ compiler, and Python 3.11 with venv and pip, which install
# benches/peers/requirements-llama.txt into target/llama. PYTHON names a Python that has it instead.
set -euo pipefail
cd "$(dirname "$0")/.."
work=target/llama
. tests/support/python.sh
want_python "$work" benches/peers/requirements-llama.txt
cargo build --quiet --locked --release --package cllm
exec "$PYTHON" - target/release/cllm "$work" <<'PYTHON'
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import llama_cpp.llama_cpp as low
import numpy as np
from llama_cpp import Llama

cllm, work = sys.argv[1], Path(sys.argv[2])
TEXT = "In the beginning God created the heaven and the earth.\n" * 40
NASTY = "It's 12345 o'clock...\n\n  So -- <|endoftext|> \u00e9t\u00e9, \u65e5\u672c \U0001f642!?\t\r\n x=3.14e-5 "
PROMPT, NEW, BLOCK = "the God", 24, 48
# Of losses. With weights of 8 bits llama.cpp rounds what they are multiplied by as well.
TOLERANCE = {"f32": 2e-6, "f16": 2e-5, "bf16": 1e-4, "q8_0": 1e-3}

default_params = low.llama_model_default_params


def plain_params():
    """Without weights repacked for AMX, where this version crashes with 8 bits and numbers of ids that
    are not whole tiles, in files of its own making as well."""
    params = default_params()
    params.use_extra_bufts = False
    return params


low.llama_model_default_params = plain_params


@low.llama_log_callback
def only_errors(level, text, _):
    if level == 4:  # GGML_LOG_LEVEL_ERROR
        sys.stderr.write(text.decode(errors="replace"))


low.llama_log_set(only_errors, None)


def run(*args) -> str:
    done = subprocess.run([cllm, *map(str, args)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"cllm {' '.join(map(str, args))}\nended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def shard(folder: Path, words: str) -> list[int]:
    """Ids of a text by the imported tokenizer, the beginning of a document before them."""
    text = folder / "nasty.txt"
    text.write_bytes(words.encode())
    out = folder / "shards"
    tokenizer = folder / "back" / "tokenizer.json"
    run("tokenize", "--data", text, "--tokenizer", tokenizer, "--out", out, "--val-fraction", 0)
    return np.fromfile(out / "train_000000.bin", dtype="<u2", offset=1024).tolist()


def rewrite(file: Path, change) -> None:
    """Writes a file again, with what `change` tells the writer besides, which no flag of training does."""
    reader, out = gguf.GGUFReader(file), file.with_suffix(".new")
    named = "general.architecture"
    writer = gguf.GGUFWriter(out, reader.get_field(named).contents())
    for field in reader.fields.values():
        if field.name != named and not field.name.startswith("GGUF."):
            kind = field.types[0]
            of = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, of)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    out.rename(file)


def compare(name: str, train: list, weights: str, change=None) -> None:
    folder = work / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    text = folder / "text.txt"
    text.write_text(TEXT)
    # Little of it is learnt: llama.cpp looks GELU up in a table of 16 bits, whose error grows with the weights (2.7e-6
    # of the loss of characters without this warm-up).
    small = "--n-layer 2 --n-embd 64 --batch-size 4 --max-steps 60 --warmup-steps 100 --val-fraction 0"
    small = [*small.split(), "--sample-tokens", 0, "--block-size", BLOCK, "--seed", 3]
    small += [] if "--n-head" in train else ["--n-head", 2]
    run("train", "--data", text, *small, "--out-dir", folder / "run", *train)
    file = folder / "model.gguf"
    export = ["export", "--format", "gguf", "--checkpoint", folder / "run", "--out", file]
    run(*export, "--weights", weights)
    if change is not None:
        rewrite(file, change)
    # With the weights as they were exported.
    run("import", file, "--out-dir", folder / "back")
    if change is not None:
        file = folder / "again.gguf"
        run("export", "--format", "gguf", "--checkpoint", folder / "back", "--out", file)
    back = ["--checkpoint", folder / "back", "--log-format", "json"]
    loss = json.loads(run("eval", *back, "--data", text))["val_loss"]
    said = json.loads(run("generate", *back, "--greedy", "--prompt", PROMPT, "--tokens", NEW))["text"]

    # Keys and values as f32 too, which llama.cpp would keep as f16.
    kept = {"type_k": low.GGML_TYPE_F32, "type_v": low.GGML_TYPE_F32}
    size = {"n_ctx": BLOCK, "n_batch": BLOCK, "n_threads": 1}
    model = Llama(str(file), **size, **kept, logits_all=True, verbose=False)
    tokens = model.tokenize(TEXT.encode(), add_bos=False)
    if model.detokenize(tokens).decode() != TEXT:
        sys.exit(f"{name}: the text is another one after tokens and back")
    # Ids one by one, as shards have them.
    nasty = TEXT if name == "chars" else NASTY
    ours = shard(folder, nasty)
    theirs = model.tokenize(nasty.encode(), add_bos=False, special=False)
    if ours[1:] != theirs:
        sys.exit(f"{name}: ids {ours[1:][:40]}, llama.cpp {theirs[:40]}")
    # A document begins with the end of the one before.
    ids = [model.token_eos(), *tokens]
    losses = []
    for first in range(0, (len(ids) - 1) // BLOCK * BLOCK, BLOCK):
        model.reset()
        model.eval(ids[first : first + BLOCK])
        logits = np.array(model.scores[:BLOCK], dtype=np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        wanted = logits[np.arange(BLOCK), ids[first + 1 : first + BLOCK + 1]]
        losses += list(np.log(np.exp(logits).sum(axis=1)) - wanted)
    theirs = math.fsum(losses) / len(losses)
    words = model.tokenize(PROMPT.encode(), add_bos=False)
    model.reset()
    model.eval(words)
    for _ in range(NEW):
        words.append(int(np.argmax(model.scores[len(words) - 1])))
        model.eval(words[-1:])
    text = model.detokenize(words).decode(errors="replace")
    differs = abs(loss / theirs - 1)
    print(f"{name:<12} {weights:<4} loss {loss:.5f}, llama.cpp {theirs:.5f}, differs by {differs:.1e}: {said!r}")
    # With 8 bits what is about as likely may change places.
    if differs > TOLERANCE[weights] or (text != said and weights != "q8_0"):
        sys.exit(f"{name}: llama.cpp says {text!r}")


compare("bytes", ["--tokenizer", "bytes"], "f32")
compare("chars", ["--tokenizer", "chars"], "f32")
compare("bpe", ["--tokenizer", "bpe:300"], "f32")
compare("untied", ["--tokenizer", "bpe:300", "--no-tied", "--no-bias"], "f32")
compare("f16", ["--tokenizer", "bpe:300"], "f16")
compare("bf16", ["--tokenizer", "bytes"], "bf16")
compare("q8_0", ["--tokenizer", "bpe:300"], "q8_0")

PARTS = "--tokenizer bpe:300 --norm rms --positions rotary --activation swiglu".split()
BIASED = [*PARTS, "--n-head", 4, "--n-kv-head", 2]
GROUPED = [*BIASED, "--bias", "false"]
WIDE = [*GROUPED, "--head-size", 24]


def linear(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(4.0)


def llama3(writer: gguf.GGUFWriter) -> None:
    """Llama 3.1's factors for heads of 32 and a base of 500,000, as llama.cpp's script makes them."""
    waves = 2 * np.pi * 500_000.0 ** (np.arange(0, 32, 2) / 32)
    kept = np.clip((8192 / waves - 1) / 3, 0, 1)
    writer.add_tensor("rope_freqs.weight", (1 / ((1 - kept) / 8 + kept)).astype(np.float32))


compare("llama", GROUPED, "f32")
compare("llama wide", [*WIDE, "--no-tied", "--rope-theta", 500], "f32")
compare("llama biased", [*BIASED, "--head-size", 24], "f32")
compare("linear", GROUPED, "f32", linear)
compare("llama 3", [*PARTS, "--bias", "false", "--rope-theta", 500_000], "f32", llama3)
compare("qwen2", [*GROUPED, "--qkv-bias", "true"], "f32")
compare("qwen2 wide", [*WIDE, "--qkv-bias", "true"], "f32")
compare("qwen2 linear", [*GROUPED, "--qkv-bias", "true"], "f32", linear)
compare("qwen3", [*GROUPED, "--qk-norm"], "f32")
compare("qwen3 wide", [*WIDE, "--qk-norm", "--no-tied"], "f32")
compare("qwen3 odd", [*PARTS, "--bias", "false", "--qk-norm", "--n-head", 3, "--head-size", 24], "f32")
compare("qwen3 linear", [*GROUPED, "--qk-norm"], "f32", linear)
compare("llama f16", GROUPED, "f16")
compare("llama q8_0", GROUPED, "q8_0")
compare("qwen2 q8_0", [*GROUPED, "--qkv-bias", "true"], "q8_0")
compare("qwen3 q8_0", [*GROUPED, "--qk-norm"], "q8_0")


def quantised(kind: str, n_embd: int) -> None:
    """Imports what llama.cpp makes of a file: types of small blocks, or mixed ones of large blocks and,
    where rows are too short for these, of small ones."""
    folder = work / f"of {kind} {n_embd}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    text = folder / "text.txt"
    text.write_text(TEXT)
    # Rows of the second matrix of a feed-forward block are longer than n_embd, and of no whole large blocks in the small model.
    small = ["--n-layer", 2, "--n-embd", n_embd, "--d-ff", 3 * n_embd, "--max-steps", 5, "--val-fraction", 0]
    small += ["--batch-size", 4, "--block-size", BLOCK, "--sample-tokens", 0, "--seed", 3]
    run("train", "--data", text, *small, "--out-dir", folder / "run", *GROUPED)
    plain, file, again = (folder / f"{name}.gguf" for name in ("plain", "file", "again"))
    export = ["export", "--format", "gguf", "--weights", "f32"]
    run(*export, "--checkpoint", folder / "run", "--out", plain)
    params = low.llama_model_quantize_default_params()
    params.ftype = getattr(low, f"LLAMA_FTYPE_MOSTLY_{kind}")
    if low.llama_model_quantize(str(plain).encode(), str(file).encode(), params) != 0:
        sys.exit(f"llama.cpp makes no {kind}")
    run("import", file, "--out-dir", folder / "back")
    run(*export, "--checkpoint", folder / "back", "--out", again)
    theirs, ours = gguf.GGUFReader(file), gguf.GGUFReader(again)
    values = {tensor.name: tensor.data for tensor in ours.tensors}
    kinds = set()
    for tensor in theirs.tensors:
        wanted = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if not np.array_equal(wanted.reshape(values[tensor.name].shape), values[tensor.name]):
            sys.exit(f"{kind}: {tensor.name} of {tensor.tensor_type.name} has other values")
        kinds.add(tensor.tensor_type.name)
    print(f"{kind:<12} n_embd {n_embd}: {', '.join(sorted(kinds))}, the same values")


for kind, n_embd in [("Q4_0", 64), ("Q4_1", 64), ("Q5_0", 64), ("Q5_1", 64), ("Q6_K", 256)]:
    quantised(kind, n_embd)
for kind in ["Q4_K_M", "Q5_K_M"]:
    quantised(kind, 64)
    quantised(kind, 256)
print("llama.cpp computes what cllm computes")
PYTHON
