#!/usr/bin/env bash
# Adapters of low rank beside Hugging Face's PEFT. Those that are trained here are loaded there: the same
# loss and the same text, merged or not, and the model that is merged here computes that too. Those that
# are made there are imported here: the same loss. Ends with an error if they differ.
#
# Usage: tests/peft.sh     (a minute, once tests/golden/requirements-transformers.txt is there)
#
# Needs Rust and Python 3.11 with venv and pip, which install into target/transformers. PYTHON names a
# Python that has what is wanted instead.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/support/python.sh
want_python target/transformers tests/golden/requirements-transformers.txt
work=target/peft
mkdir -p "$work"
cargo build --quiet --locked --release --package cllm
exec "$PYTHON" - target/release/cllm "$work" <<'PYTHON'
import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

cllm, work = sys.argv[1], Path(sys.argv[2])
TEXT = "In the beginning God created the heaven and the earth.\n" * 40
OTHER = "All work and no play makes Jack a dull boy.\n" * 40
PROMPT, NEW, BLOCK = "All God", 24, 48
TOLERANCE = 2e-6
disable_progress_bar()


def run(*args) -> str:
    done = subprocess.run([cllm, *map(str, args)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"cllm {' '.join(map(str, args))}\nended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def loss_here(folder: Path, text: Path) -> float:
    args = ["--checkpoint", folder, "--data", text, "--block-size", BLOCK, "--log-format", "json"]
    return json.loads(run("eval", *args))["val_loss"]


def loss_there(model, tokens, text: str) -> float:
    # A document begins with the end of the one before.
    ids, losses = [tokens.eos_token_id, *tokens(text)["input_ids"]], []
    with torch.no_grad():
        for first in range(0, (len(ids) - 1) // BLOCK * BLOCK, BLOCK):
            logits = model(torch.tensor([ids[first : first + BLOCK]])).logits[0]
            wanted = torch.tensor(ids[first + 1 : first + BLOCK + 1])
            losses.append(torch.nn.functional.cross_entropy(logits, wanted))
    return float(torch.stack(losses).mean())


def near(name: str, what: str, here: float, there: float) -> None:
    differs = abs(here / there - 1)
    print(f"{name:<12} {what:<28} loss {here:.6f}, PEFT {there:.6f}, differs by {differs:.1e}")
    if differs > TOLERANCE:
        sys.exit(f"{name}: {what} differs")


def compare(name: str, model: list, lora: list, theirs: dict) -> None:
    folder = work / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    text, other = folder / "text.txt", folder / "other.txt"
    text.write_text(TEXT)
    other.write_text(OTHER)
    usual = "--batch-size 4 --max-steps 40 --warmup-steps 4 --lr 1e-2 --val-fraction 0 --sample-tokens 0"
    usual = [*usual.split(), "--seed", 3, "--block-size", BLOCK]
    small = "--n-layer 2 --n-embd 32 --n-head 4 --tokenizer bpe:300".split()
    run("train", "--data", text, *small, *usual, *model, "--out-dir", folder / "base")
    run("export", "--checkpoint", folder / "base", "--out", folder / "hf")
    tuned = ["--base", folder / "base", "--data", other, *usual, *lora]
    run("train", *tuned, "--out-dir", folder / "tuned")
    run("export", "--checkpoint", folder / "tuned", "--format", "peft", "--out", folder / "adapter")
    run("export", "--checkpoint", folder / "tuned", "--out", folder / "merged")

    tokens = AutoTokenizer.from_pretrained(folder / "hf")
    # Only a limit to warn about.
    tokens.model_max_length = len(TEXT)

    def load(which: str):
        return AutoModelForCausalLM.from_pretrained(folder / which).double().eval()

    before, here = loss_here(folder / "base", other), loss_here(folder / "tuned", other)
    if here > before - 0.1:
        sys.exit(f"{name}: the adapter has learnt nothing: {before} to {here}")
    peft = PeftModel.from_pretrained(load("hf"), folder / "adapter").double().eval()
    near(name, "adapter", here, loss_there(peft, tokens, OTHER))
    words = tokens(PROMPT, return_tensors="pt")["input_ids"]
    out = peft.generate(input_ids=words, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    said = tokens.decode(out[0], skip_special_tokens=True)
    args = ["--checkpoint", folder / "tuned", "--greedy", "--log-format", "json"]
    ours = json.loads(run("generate", *args, "--prompt", PROMPT, "--tokens", NEW))["text"]
    if said != ours:
        sys.exit(f"{name}: PEFT says {said!r}, not {ours!r}")
    near(name, "merged there", here, loss_there(peft.merge_and_unload(), tokens, OTHER))
    near(name, "merged here", here, loss_there(load("merged"), tokens, OTHER))

    torch.manual_seed(5)
    # No B of zeros: what it adds counts.
    made = get_peft_model(load("hf").float(), LoraConfig(init_lora_weights=False, **theirs))
    made.save_pretrained(folder / "made")
    run("import", folder / "made", "--base", folder / "base", "--out-dir", folder / "imported")
    there = loss_there(made.double().eval(), tokens, OTHER)
    near(name, "made by PEFT", loss_here(folder / "imported", other), there)


compare("gpt2", [], ["--lora-rank", 4], {"r": 8, "lora_alpha": 4, "target_modules": "all-linear"})
some = ["--lora-rank", 2, "--lora-targets", "c_attn,mlp.c_proj", "--lora-alpha", 3]
compare("gpt2-some", ["--no-tied"], some, {"r": 3, "target_modules": ["c_attn"]})
LLAMA = "--norm rms --positions rotary --activation swiglu --bias false --n-kv-head 2".split()
all_here = {"r": 4, "use_rslora": True, "target_modules": "all-linear"}
compare("llama", LLAMA, ["--lora-rank", 4], all_here)
some = ["--lora-rank", 8, "--lora-targets", "q_proj,v_proj"]
compare("llama-some", LLAMA, some, {"r": 8, "target_modules": ["k_proj", "up_proj", "down_proj"]})
qwen = [*LLAMA, "--qkv-bias", "true"]
compare("qwen2", qwen, ["--lora-rank", 4], {"r": 4, "target_modules": ["o_proj", "gate_proj"]})
compare("qwen3", [*LLAMA, "--qk-norm"], ["--lora-rank", 1], all_here)
print("PEFT computes what cllm computes")
PYTHON
