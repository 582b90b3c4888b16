#!/usr/bin/env bash
# Trains models of every family for 20 steps beside PyTorch: random models of Hugging Face's transformers,
# which `cllm import` makes bases of, by `cllm train` and by PyTorch in fp32, on the same batches with the
# same AdamW. One with capped logits, for which transformers has no class of the same parts, begins here, and
# PyTorch caps what its class computes. Prints how far the losses of each family are apart, and ends with an
# error if those of any step are more than 1e-4.
#
# Usage: tests/steps.sh     (a minute, once tests/golden/requirements-transformers.txt is there)
#
# Needs Rust and Python 3.11 with venv and pip, which install into target/transformers. PYTHON names a
# Python that has what is wanted instead.
set -euo pipefail
cd "$(dirname "$0")/.."
work=target/transformers
. tests/support/python.sh
want_python "$work" tests/golden/requirements-transformers.txt
cargo build --quiet --locked --release --package cllm
cargo build --quiet --locked --release --example peer_inputs
exec "$PYTHON" - target/release/cllm target/release/examples/peer_inputs "$work/steps" <<'PYTHON'
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

cllm, peer_inputs, work = sys.argv[1], sys.argv[2], Path(sys.argv[3])
STEPS, ACCUM, BATCH, BLOCK, VOCAB = 20, 2, 3, 48, 211
# Relative, of losses in fp32: two programs that add in different orders.
TOLERANCE = 1e-4
# Of the loss within the steps, or a wrong gradient would hide.
FALL = 0.5
logging.disable_progress_bar()


def run(*args) -> None:
    done = subprocess.run([*map(str, args)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, args))}\nended with {done.returncode}:\n{done.stderr}")


def shard(path: Path) -> None:
    """Text of a kind: each token is mostly followed by one of two others."""
    draw = np.random.default_rng(7)
    follows, ids = draw.integers(0, VOCAB, (VOCAB, 2)), [0]
    for _ in range(20_000):
        one_of_two = follows[ids[-1], draw.integers(2)]
        ids.append(int(one_of_two if draw.random() < 0.95 else draw.integers(VOCAB)))
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, len(ids)
    path.write_bytes(header.tobytes() + np.array(ids, dtype="<u2").tobytes())


def base(folder: Path, kind: str, options: dict) -> None:
    """A model all of whose parameters are random, as transformers saves it."""
    torch.manual_seed(1)
    ids = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 0}
    config = AutoConfig.for_model(kind, **ids, **options)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_gain = ("ln_" in name or "norm" in name) and name.endswith("weight")
            parameter.normal_(1.0 if is_gain else 0.0, 0.1)
    model.save_pretrained(folder)


def ours(folder: Path, model: list) -> Path:
    """Trains it here; the file has the weights, the losses, the batches, and the numbers of AdamW."""
    train = f"""--vocab-size {VOCAB} --val-fraction 0 --sample-tokens 0 --log-interval 1 --seed 5
        --batch-size {BATCH} --gradient-accumulation-steps {ACCUM} --block-size {BLOCK} --dropout 0
        --max-steps {STEPS} --warmup-steps 3 --learning-rate 0.01 --weight-decay 0.1 --grad-clip 1"""
    paths = ["--data", work / "data.bin", "--out-dir", folder / "run"]
    run(cllm, "train", *train.split(), *paths, *model)
    start = folder / "start.safetensors"
    run(peer_inputs, folder / "run", start)
    return start


def theirs(model, start: Path, cap: float | None) -> list[float]:
    """Trains it with PyTorch."""
    with safe_open(start, "pt") as file:
        tokens, targets, rates = (file.get_tensor(name) for name in ("tokens", "targets", "lrs"))
        c = json.loads(file.metadata()["config"])
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() == 2], "weight_decay": c["weight_decay"]},
        {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=tuple(c["betas"]), eps=c["eps"])
    losses = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = float(rates[step])
        loss = 0.0
        for micro in range(ACCUM):
            logits = model(tokens[step, micro].long()).logits
            if cap is not None:
                logits = cap * torch.tanh(logits / cap)
            wanted = targets[step, micro].long().flatten()
            part = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted) / ACCUM
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(parameters, c["clip"])
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss)
    return losses


def compare(name: str, kind: str, **options) -> bool:
    folder = work / name
    folder.mkdir()
    base(folder / "hf", kind, options)
    run(cllm, "import", folder / "hf", "--out-dir", folder / "base")
    start = ours(folder, ["--base", folder / "base"])
    model = AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32)
    return differ(name, model, start)


def capped(name: str, cap: float) -> bool:
    """GPT-2 with squared ReLU and capped logits, from initial weights of cllm."""
    folder = work / name
    folder.mkdir()
    sizes = "--n-layer 2 --n-embd 48 --n-head 3 --activation relu2"
    start = ours(folder, [*sizes.split(), "--logit-softcap", cap])
    config = AutoConfig.for_model(
        "gpt2", vocab_size=VOCAB, n_layer=2, n_embd=48, n_head=3, n_positions=BLOCK,
        activation_function="relu2", bos_token_id=0, eos_token_id=0,
    )
    model = AutoModelForCausalLM.from_config(config)
    with safe_open(start, "pt") as file, torch.no_grad():
        for parameter, values in model.transformer.named_parameters():
            values.copy_(file.get_tensor(f"param/{parameter}"))
    return differ(name, model, start, cap)


def differ(name: str, model, start: Path, cap: float | None = None) -> bool:
    """Trains there what was trained here, and says how far they are apart."""
    with safe_open(start, "np") as file:
        mine = file.get_tensor("losses").tolist()
    other = theirs(model.eval(), start, cap)
    apart = [abs(a / b - 1) for a, b in zip(mine, other, strict=True)]
    worst = max(range(STEPS), key=apart.__getitem__)
    row = f"| {name} | {mine[0]:.4f} | {mine[-1]:.4f} | {apart[worst]:.1e} | {worst + 1} |"
    print(row, flush=True)
    if mine[-1] > mine[0] - FALL:
        sys.exit(f"{name}: a loss that hardly falls shows nothing: {mine}")
    return apart[worst] <= TOLERANCE


def gpt2(name: str, **options) -> bool:
    sizes = {"n_layer": 2, "n_embd": 48, "n_head": 3, "n_positions": 64}
    return compare(name, "gpt2", **(sizes | options))


def llama(name: str, kind: str, **options) -> bool:
    sizes = {
        "num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": False,
    }
    return compare(name, kind, **(sizes | options))


shutil.rmtree(work, ignore_errors=True)
work.mkdir(parents=True)
shard(work / "data.bin")
print("| family | first loss | last loss | furthest apart | at step |\n|---|---:|---:|---:|---:|")
passed = [
    gpt2("gpt2"),
    gpt2("gpt2-untied", tie_word_embeddings=False),
    capped("gpt2-relu2-cap", 2.0),
    gpt2("gpt2-relu2", activation_function="relu2"),
    llama("llama-grouped", "llama"),
    llama("llama-tied", "llama", tie_word_embeddings=True),
    llama("qwen2", "qwen2"),
    llama("qwen3", "qwen3", head_dim=16),
    llama("qwen3-tied", "qwen3", tie_word_embeddings=True),
    llama("mistral-window", "mistral", sliding_window=11),
    llama("mistral-tied", "mistral", sliding_window=11, tie_word_embeddings=True),
]
if not all(passed):
    sys.exit(f"losses are further apart than {TOLERANCE}")
print(f"{STEPS} steps of cllm have the losses that PyTorch has")
PYTHON
