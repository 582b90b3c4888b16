#!/usr/bin/env bash
# A model that people use: SmolLM2-135M-Instruct, as llama.cpp's file of 4-bit weights. Imports it, and
# compares with llama.cpp: tokens of a text, its loss, what follows five prompts, and a reply in a
# conversation. Ends with an error if they differ.
#
# Usage: tests/smollm2.sh     (some minutes the first time: llama.cpp is built from source; 90 MB)
#
# llama.cpp rounds what it multiplies 4-bit weights by to 8 bits, so the texts of the file itself part
# after some words. What the weights stand for, exported as f32, is the same model on both sides.
#
# Needs Rust, a C++ compiler, and Python 3.11 with venv and pip, which install
# benches/peers/requirements-llama.txt into target/llama. PYTHON names a Python that has it instead.
set -euo pipefail
cd "$(dirname "$0")/.."
work=target/llama
. tests/support/python.sh
. tests/support/smollm2.sh
want_python "$work" benches/peers/requirements-llama.txt
want_smollm2 "$work"
cargo build --quiet --locked --release --package cllm
exec "$PYTHON" - target/release/cllm "$MODEL" "$work/smollm2" <<'PYTHON'
import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

import llama_cpp.llama_cpp as low
import numpy as np
from llama_cpp import Llama

cllm, file, work = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
PROMPTS = [
    "The capital of France is",
    "Once upon a time, there was",
    "def fibonacci(n):",
    "Water boils at",
    "The three laws of motion are 1.",
]
TEXT = (
    "In the beginning God created the heaven and the earth. And the earth was without form, and void; "
    "and darkness was upon the face of the deep. It's 12345 o'clock...\n\n  So -- \u00e9t\u00e9, \u65e5\u672c!\n"
) * 6
QUESTION = "What is the capital of Italy?"
NEW, BLOCK = 64, 256
# Of losses: of the same weights as f32, where 30 layers round 15 times as often as the two of
# tests/llama.sh, and of weights of 4 bits by factors of 8.
SAME, ROUNDED = 3e-5, 2e-2

default_params = low.llama_model_default_params


def plain_params():
    """Without weights repacked for AMX, where this version crashes."""
    params = default_params()
    params.use_extra_bufts = False
    return params


low.llama_model_default_params = plain_params


def run(*args, said: str = "") -> str:
    done = subprocess.run([cllm, *map(str, args)], capture_output=True, text=True, input=said)
    if done.returncode != 0:
        sys.exit(f"cllm {' '.join(map(str, args))}\nended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def opened(path: Path) -> Llama:
    kept = {"type_k": low.GGML_TYPE_F32, "type_v": low.GGML_TYPE_F32}
    size = {"n_ctx": 1024, "n_batch": BLOCK, "n_threads": 2}
    return Llama(str(path), **size, **kept, logits_all=True, verbose=False)


def loss(model: Llama, ids: list[int]) -> float:
    losses = []
    for first in range(0, (len(ids) - 1) // BLOCK * BLOCK, BLOCK):
        model.reset()
        model.eval(ids[first : first + BLOCK])
        logits = np.array(model.scores[:BLOCK], dtype=np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        wanted = logits[np.arange(BLOCK), ids[first + 1 : first + BLOCK + 1]]
        losses += list(np.log(np.exp(logits).sum(axis=1)) - wanted)
    return math.fsum(losses) / len(losses)


def greedy(model: Llama, prompt: str) -> str:
    done = model.create_completion(prompt, max_tokens=NEW, temperature=0, repeat_penalty=1.0)
    return prompt + done["choices"][0]["text"]


folder, exported = work / "run", work / "f32.gguf"
shutil.rmtree(folder, ignore_errors=True)
exported.unlink(missing_ok=True)
begin = time.time()
run("import", file, "--out-dir", folder)
print(f"imported in {time.time() - begin:.1f} s")
run("export", "--format", "gguf", "--weights", "f32", "--checkpoint", folder, "--out", exported)
quarters, floats = opened(file), opened(exported)

text = work / "text.txt"
text.write_text(TEXT)
shutil.rmtree(work / "shards", ignore_errors=True)
run("tokenize", "--data", text, "--tokenizer", folder / "tokenizer.json", "--out", work / "shards",
    "--val-fraction", 0)
ours = np.fromfile(work / "shards" / "train_000000.bin", dtype="<u2", offset=1024).tolist()
theirs = quarters.tokenize(TEXT.encode(), add_bos=False, special=False)
if ours[1:] != theirs:
    sys.exit(f"ids {ours[1:][:40]}, llama.cpp {theirs[:40]}")

rows = (len(ours) - 1) // BLOCK
told = loss(floats, ours), loss(quarters, ours)
settings = ["--checkpoint", folder, "--log-format", "json"]
ours_loss = json.loads(run("eval", *settings, "--data", work / "shards", "--block-size", BLOCK))["val_loss"]
apart = [abs(ours_loss / other - 1) for other in told]
print(f"loss of {rows * BLOCK} tokens {ours_loss:.6f}; llama.cpp with f32 weights differs by "
      f"{apart[0]:.1e}, with 4 bits and rounded factors by {apart[1]:.1e}")
if apart[0] > SAME or apart[1] > ROUNDED:
    sys.exit("the losses differ")

for prompt in PROMPTS:
    said = json.loads(run("generate", *settings, "--greedy", "--prompt", prompt, "--tokens", NEW))["text"]
    if said != greedy(floats, prompt):
        sys.exit(f"{said!r}\nllama.cpp with the same weights: {greedy(floats, prompt)!r}")
    other = greedy(quarters, prompt)
    same = next((n for n, (a, b) in enumerate(zip(said, other)) if a != b), min(len(said), len(other)))
    print(f"{prompt!r}: the same text of up to {NEW} tokens; with 4 bits and rounded factors the same for "
          f"{same - len(prompt)} of {len(other) - len(prompt)} characters")

told = json.loads(run("generate", *settings, "--interactive", "--greedy", "--tokens", NEW, said=QUESTION + "\n"))
messages = [{"role": "user", "content": QUESTION}]
reply = floats.create_chat_completion(messages, max_tokens=NEW, temperature=0, repeat_penalty=1.0)
reply = reply["choices"][0]["message"]["content"]
if told["text"] != reply:
    sys.exit(f"{told['text']!r}\nllama.cpp with the same weights: {reply!r}")
print(f"{QUESTION} {reply!r}, as llama.cpp")
PYTHON
