#!/usr/bin/env bash
# Exports models of every kind of tokenizer, weight and block, loads them with Hugging Face's transformers, and
# compares: tokens of a text, its loss, and what follows a prompt. Ends with an error if they differ.
#
# Usage: tests/transformers.sh     (a minute, once tests/golden/requirements-transformers.txt is there)
#
# Needs Rust and Python 3.11 with venv and pip, which install into target/transformers. PYTHON names a
# Python that has what is wanted instead.
set -euo pipefail
cd "$(dirname "$0")/.."
work=target/transformers
. tests/support/python.sh
want_python "$work" tests/golden/requirements-transformers.txt
cargo build --quiet --locked --release --package cllm
exec "$PYTHON" - target/release/cllm "$work" <<'PYTHON'
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

cllm, work = sys.argv[1], Path(sys.argv[2])
TEXT = "In the beginning God created the heaven and the earth.\n" * 40
NASTY = "It's 12345 o'clock...\n\n  So -- <|endoftext|> \u00e9t\u00e9, \u65e5\u672c \U0001f642!?\t\r\n x=3.14e-5 "
PROMPT, NEW, BLOCK = "the God", 24, 48
# Of losses; weights of 16 bits are the same on both sides.
TOLERANCE = 2e-6


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


def older_files(folder: Path, tokens, kind: str) -> None:
    """The same tokens as files from before tokenizer.json, which transformers reads by the class."""
    older = folder / "older"
    shutil.copytree(folder / "hf", older)
    (older / "tokenizer.json").unlink()
    tokens.backend_tokenizer.model.save(str(older))
    end = {"eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "tokenizer_class": kind}
    (older / "tokenizer_config.json").write_text(json.dumps(end))
    wanted = AutoTokenizer.from_pretrained(older)(NASTY, split_special_tokens=True)["input_ids"]
    shutil.rmtree(folder / "back")
    run("import", older, "--out-dir", folder / "back")
    shutil.rmtree(folder / "shards")
    ours = shard(folder, NASTY)
    if ours[1:] != wanted:
        sys.exit(f"{kind}: ids {ours[1:][:40]}, transformers {wanted[:40]}")


def compare(name: str, train: list, weights: str, heads: int = 2) -> None:
    folder = work / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    text = folder / "text.txt"
    text.write_text(TEXT)
    small = "--n-layer 2 --n-embd 32 --batch-size 4 --max-steps 40 --val-fraction 0"
    small = [*small.split(), "--sample-tokens", 0, "--block-size", BLOCK, "--seed", 3, "--n-head", heads, "--out-dir", folder / "run"]
    run("train", "--data", text, *small, *train)
    run("export", "--checkpoint", folder / "run", "--out", folder / "hf", "--weights", weights)
    # With the weights as they were exported.
    run("import", folder / "hf", "--out-dir", folder / "back")
    back = ["--checkpoint", folder / "back", "--log-format", "json"]
    loss = json.loads(run("eval", *back, "--data", text))["val_loss"]
    said = json.loads(run("generate", *back, "--greedy", "--prompt", PROMPT, "--tokens", NEW))["text"]

    tokens = AutoTokenizer.from_pretrained(folder / "hf")
    # Only a limit to warn about.
    tokens.model_max_length = len(TEXT)
    model = AutoModelForCausalLM.from_pretrained(folder / "hf").double().eval()
    # A document begins with the end of the one before.
    ids = [tokens.eos_token_id, *tokens(TEXT)["input_ids"]]
    losses = []
    with torch.no_grad():
        for first in range(0, (len(ids) - 1) // BLOCK * BLOCK, BLOCK):
            logits = model(torch.tensor([ids[first : first + BLOCK]])).logits[0]
            wanted = torch.tensor(ids[first + 1 : first + BLOCK + 1])
            losses.append(torch.nn.functional.cross_entropy(logits, wanted))
        theirs = float(torch.stack(losses).mean())
        words = tokens(PROMPT, return_tensors="pt")["input_ids"]
        out = model.generate(words, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    text = tokens.decode(out[0], skip_special_tokens=True)
    differs = abs(loss / theirs - 1)
    print(f"{name:<14} loss {loss:.6f}, transformers {theirs:.6f}, differs by {differs:.1e}: {said!r}")
    # Ids one by one, as shards have them.
    nasty = TEXT if name == "chars" else NASTY
    ours = shard(folder, nasty)
    # A text that spells a special token is plain text here.
    wanted = tokens(nasty, split_special_tokens=True)["input_ids"]
    if ours[1:] != wanted:
        sys.exit(f"{name}: ids {ours[1:][:40]}, transformers {wanted[:40]}")
    if tokens.decode(tokens(TEXT)["input_ids"]) != TEXT:
        sys.exit(f"{name}: the text is another one after tokens and back")
    if name in ("bpe", "qwen2"):
        older_files(folder, tokens, "Qwen2Tokenizer" if name == "qwen2" else "GPT2Tokenizer")
    if differs > TOLERANCE or text != said:
        sys.exit(f"{name}: transformers says {text!r}")


compare("bytes", ["--tokenizer", "bytes"], "f32")
compare("chars", ["--tokenizer", "chars"], "f32")
compare("bpe", ["--tokenizer", "bpe:300"], "f32")
compare("untied", ["--tokenizer", "bpe:300", "--no-tied", "--no-bias"], "f32")
compare("relu2", ["--tokenizer", "bpe:300", "--activation", "relu2"], "f32")
compare("f16", ["--tokenizer", "bpe:300"], "f16")
compare("bf16", ["--tokenizer", "bytes"], "bf16")
LLAMA = "--tokenizer bpe:300 --norm rms --positions rotary --activation swiglu".split()
PLAIN = [*LLAMA, "--bias", "false"]
compare("llama", [*PLAIN, "--n-kv-head", 2], "f32", heads=4)
compare("llama-bf16", [*PLAIN, "--n-kv-head", 1, "--no-tied"], "bf16", heads=4)
compare("llama-biases", LLAMA, "f32", heads=4)
wide = ["--n-kv-head", 2, "--head-size", 24, "--rope-theta", 500]
compare("llama-wide", [*PLAIN, *wide], "f32", heads=4)
# Heads that do not divide the width: of the family only Mistral's class takes them.
compare("mistral", [*PLAIN, "--head-size", 24], "f32", heads=3)
compare("mistral-window", [*PLAIN, "--window", 9], "f32", heads=4)
compare("qwen2", [*PLAIN, "--n-kv-head", 2, "--qkv-bias", "true"], "f32", heads=4)
compare("qwen2-wide", [*PLAIN, "--qkv-bias", "true", "--head-size", 24], "f16", heads=2)
NORMED = [*LLAMA, "--qk-norm", "--bias", "false"]
compare("qwen3", [*NORMED, "--n-kv-head", 2], "f32", heads=4)
# Heads that do not divide the width.
compare("qwen3-wide", [*NORMED, "--head-size", 24, "--no-tied"], "bf16", heads=3)
print("transformers computes what cllm computes")
PYTHON
