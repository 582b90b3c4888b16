"""Make the golden files: what PyTorch computes for a few tiny GPT-2 models.

Each file holds initial weights, token batches, the logits, loss and gradients
of the first step, and the losses, gradient norms and weights of ten AdamW
steps. Weights are rounded to float32 first and everything after that runs in
float64, so the files are the answer itself and not one more float32 opinion.

    python tests/golden/make_golden.py [--out DIR]

README.md beside this file lists the configurations and the tensors.
"""

import argparse
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file

FORMAT = 1
STEPS = 10
LEARNING_RATE = 1e-3
WARMUP = 3
BETAS = (0.9, 0.95)
EPS = 1e-8
WEIGHT_DECAY = 0.1
CLIP = 1.0
LAYER_NORM_EPS = 1e-5
IGNORED = -1


@dataclass(frozen=True)
class Config:
    """One model and its batches; every field goes into the file's metadata."""

    name: str
    seed: int
    vocab_size: int = 61
    block_size: int = 16
    n_layer: int = 2
    n_head: int = 4
    d_model: int = 24
    d_ff: int = 96
    bias: bool = True
    tied: bool = True
    batch: int = 2
    tokens_per_sequence: int = 16
    accum: int = 1
    init_std: float = 0.2
    # Share of the targets that do not count; the first sequence of a step
    # that has such targets loses all of its own.
    ignored_share: float = 0.0
    # Squared ReLU in the place of GELU, and what logits are capped at.
    squared: bool = False
    softcap: float | None = None
    # Tokens before each one whose embeddings are added to its own.
    previous: int = 0
    # What embeddings are multiplied by.
    scale: float = 1.0


CONFIGS = [
    Config("tied_bias", 1),
    Config("untied_bias", 2, tied=False),
    Config("tied_nobias", 3, bias=False),
    Config("untied_nobias", 4, bias=False, tied=False),
    # Nothing here divides by 2, let alone by the width of a vector.
    Config("odd_heads", 5, vocab_size=37, block_size=15, n_layer=3, n_head=3,
           d_model=21, d_ff=55, batch=3, tokens_per_sequence=15),
    # Sequences shorter than the block, and 39 tokens in all.
    Config("odd_tokens", 6, block_size=17, batch=3, tokens_per_sequence=13, tied=False),
    Config("long", 7, vocab_size=101, block_size=70, n_layer=1, n_head=2,
           d_model=32, d_ff=128, tokens_per_sequence=70),
    Config("accum_2", 8, accum=2, bias=False),
    Config("accum_3", 9, accum=3, n_layer=1, batch=1, tokens_per_sequence=11, tied=False),
    # The micro-batches count unequal numbers of targets, so a mean of means
    # is not the mean.
    Config("ignored", 10, accum=2, batch=3, tokens_per_sequence=9, ignored_share=0.4),
    Config("one_token", 11, vocab_size=19, block_size=4, n_head=2, d_model=16,
           d_ff=64, batch=1, tokens_per_sequence=1),
    # Small weights and little to clip: the one case where the norm stays below 1.
    Config("unclipped", 12, n_layer=1, init_std=0.02, batch=8),
    Config("relu2", 13, d_ff=55, squared=True),
    # Logits of up to 3 and below -3, capped at 1.5.
    Config("relu2_capped", 15, bias=False, tied=False, accum=2, batch=3, tokens_per_sequence=9,
           ignored_share=0.4, squared=True, softcap=1.5),
    # More of them than a short sequence has.
    Config("previous", 16, previous=3),
    Config("previous_untied", 17, block_size=9, tied=False, accum=2, batch=3, tokens_per_sequence=9,
           ignored_share=0.4, previous=11),
    Config("scaled", 18, n_layer=1, previous=2, scale=2.5),
    Config("scaled_untied", 19, n_layer=1, tied=False, bias=False, accum=2, batch=3, tokens_per_sequence=9,
           scale=0.25),
]


def parameter_table(c):
    """(name, shape) of every parameter, in the order of the project's table."""
    table = [("wte.weight", (c.vocab_size, c.d_model)), ("wpe.weight", (c.block_size, c.d_model))]
    if c.previous:
        table.append(("previous.weight", (c.previous, c.d_model)))

    def norm(name):
        table.append((f"{name}.weight", (c.d_model,)))
        if c.bias:
            table.append((f"{name}.bias", (c.d_model,)))

    def linear(name, rows, columns):
        table.append((f"{name}.weight", (rows, columns)))
        if c.bias:
            table.append((f"{name}.bias", (columns,)))

    for i in range(c.n_layer):
        norm(f"h.{i}.ln_1")
        linear(f"h.{i}.attn.c_attn", c.d_model, 3 * c.d_model)
        linear(f"h.{i}.attn.c_proj", c.d_model, c.d_model)
        norm(f"h.{i}.ln_2")
        linear(f"h.{i}.mlp.c_fc", c.d_model, c.d_ff)
        linear(f"h.{i}.mlp.c_proj", c.d_ff, c.d_model)
    norm("ln_f")
    if not c.tied:
        table.append(("lm_head.weight", (c.vocab_size, c.d_model)))
    return table


def initial_parameters(c, table, generator):
    """Weights N(0, std), gains 1 + noise, biases noise; exact in float32."""
    parameters = {}
    for name, shape in table:
        values = torch.randn(shape, generator=generator, dtype=torch.float64) * c.init_std
        if len(shape) == 1 and name.endswith(".weight"):
            values += 1.0
        parameters[name] = values.to(torch.float32).to(torch.float64).requires_grad_()
    return parameters


def forward(c, p, tokens):
    """Logits [B, T, V] of tokens [B, T]."""
    batch, length = tokens.shape

    def norm(x, name):
        weight, bias = p[f"{name}.weight"], p.get(f"{name}.bias")
        return F.layer_norm(x, (c.d_model,), weight, bias, eps=LAYER_NORM_EPS)

    def linear(x, name):
        y = x @ p[f"{name}.weight"]
        return y + p[f"{name}.bias"] if c.bias else y

    def heads(x):
        return x.view(batch, length, c.n_head, c.d_model // c.n_head).transpose(1, 2)

    future = torch.ones(length, length, dtype=torch.bool).triu(diagonal=1)
    embedded = p["wte.weight"][tokens]
    x = embedded + p["wpe.weight"][:length]
    for back in range(1, min(c.previous + 1, length)):
        shifted = torch.zeros_like(embedded)
        shifted[:, back:] = embedded[:, :-back]
        x = x + p["previous.weight"][back - 1] * shifted
    x = c.scale * x
    for i in range(c.n_layer):
        qkv = linear(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn")
        q, k, v = (heads(part) for part in qkv.split(c.d_model, dim=2))
        scores = q @ k.transpose(-2, -1) / math.sqrt(c.d_model // c.n_head)
        scores = scores.masked_fill(future, float("-inf")).softmax(dim=-1)
        mixed = (scores @ v).transpose(1, 2).reshape(batch, length, c.d_model)
        x = x + linear(mixed, f"h.{i}.attn.c_proj")
        hidden = linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
        hidden = F.relu(hidden).square() if c.squared else F.gelu(hidden, approximate="tanh")
        x = x + linear(hidden, f"h.{i}.mlp.c_proj")
    head = p["wte.weight"] if c.tied else p["lm_head.weight"]
    return norm(x, "ln_f") @ head.T


def capped(c, logits):
    """As Gemma 2 of `transformers` caps them."""
    return logits if c.softcap is None else c.softcap * torch.tanh(logits / c.softcap)


def make_batches(c, generator):
    """Tokens and targets [steps, accum, B, T]; a target is the token after."""
    shape = (STEPS, c.accum, c.batch, c.tokens_per_sequence + 1)
    stream = torch.randint(c.vocab_size, shape, generator=generator)
    tokens, targets = stream[..., :-1].clone(), stream[..., 1:].clone()
    if c.ignored_share:
        drop = torch.rand(targets.shape, generator=generator) < c.ignored_share
        drop[:, 0, 0, :] = True
        targets[drop] = IGNORED
    return tokens, targets


def step_loss(c, forward, p, tokens, targets):
    """Backward over the micro-batches [accum, B, T]; returns the step's loss.

    The loss is the mean over all targets of the step that count.
    """
    counted = (targets != IGNORED).sum()
    total = 0.0
    for micro_tokens, micro_targets in zip(tokens, targets):
        logits = capped(c, forward(c, p, micro_tokens))
        loss = F.cross_entropy(logits.flatten(0, 1), micro_targets.flatten(),
                               ignore_index=IGNORED, reduction="sum") / counted
        loss.backward()
        total += loss.item()
    return total


def learning_rates():
    return [LEARNING_RATE * min(1.0, (step + 1) / WARMUP) for step in range(STEPS)]


def make(c, table, forward):
    """All tensors of one golden file, and its metadata.

    The model is a table of parameters and a function such as `forward`; another script has others.
    """
    generator = torch.Generator().manual_seed(c.seed)
    p = initial_parameters(c, table, generator)
    tokens, targets = make_batches(c, generator)
    optimizer = torch.optim.AdamW(
        [
            {"params": [v for v in p.values() if v.dim() == 2], "weight_decay": WEIGHT_DECAY},
            {"params": [v for v in p.values() if v.dim() == 1], "weight_decay": 0.0},
        ],
        lr=LEARNING_RATE, betas=BETAS, eps=EPS, foreach=False,
    )

    def f32(values):
        return values.detach().to(torch.float32).numpy().copy()

    tensors = {f"param/{name}": f32(values) for name, values in p.items()}
    tensors["tokens"] = tokens.to(torch.int32).numpy()
    tensors["targets"] = targets.to(torch.int32).numpy()
    with torch.no_grad():
        tensors["logits"] = f32(capped(c, forward(c, p, tokens[0, 0])))

    losses, norms = [], []
    for step, lr in enumerate(learning_rates()):
        optimizer.zero_grad()
        losses.append(step_loss(c, forward, p, tokens[step], targets[step]))
        if step == 0:
            tensors.update((f"grad/{name}", f32(values.grad)) for name, values in p.items())
        norms.append(torch.nn.utils.clip_grad_norm_(p.values(), CLIP).item())
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()

    tensors.update((f"final/{name}", f32(values)) for name, values in p.items())
    tensors["loss"] = np.array(losses[0])
    tensors["losses"] = np.array(losses)
    tensors["grad_norms"] = np.array(norms)
    tensors["lrs"] = np.array(learning_rates())
    metadata = asdict(c) | {
        "format": FORMAT,
        "torch": torch.__version__.split("+")[0],
        "steps": STEPS,
        "betas": BETAS,
        "eps": EPS,
        "weight_decay": WEIGHT_DECAY,
        "clip": CLIP,
        "layer_norm_eps": LAYER_NORM_EPS,
        # safetensors sorts tensors its own way; this is the table's order.
        "parameters": [name for name, _ in table],
    }
    # In the words of the project's reports; what is absent is GELU and no cap, and the first files do
    # not say.
    if metadata.pop("squared"):
        metadata.setdefault("parts", {})["activation"] = "relu2"
    if previous := metadata.pop("previous"):
        metadata.setdefault("parts", {})["previous_tokens"] = previous
    if (scale := metadata.pop("scale")) != 1.0:
        metadata.setdefault("parts", {})["embedding_scale"] = scale
    if (cap := metadata.pop("softcap")) is not None:
        metadata.setdefault("parts", {})["logit_softcap"] = cap
    return tensors, metadata


def write(out, c, tensors, metadata):
    """Saves a golden file, and prints a line about it."""
    path = out / f"{c.name}.safetensors"
    save_file(tensors, path, metadata={"config": json.dumps(metadata)})
    losses, norms = tensors["losses"], tensors["grad_norms"]
    print(f"{path.name:28} {path.stat().st_size:7} bytes  "
          f"loss {losses[0]:.4f} -> {losses[-1]:.4f}  "
          f"norm {norms.min():.3f} .. {norms.max():.3f}")


def folder(description):
    """Where the arguments ask for the files; also makes PyTorch repeat itself."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    return out


def main():
    out = folder("Make the golden files.")
    for c in CONFIGS:
        write(out, c, *make(c, parameter_table(c), forward))


if __name__ == "__main__":
    main()
