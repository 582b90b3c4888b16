"""GPT-2 as one writes it in PyTorch, with the weights and batches of a start file."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors import safe_open

IGNORED = -1
# A start file keeps these with a row per input; `nn.Linear` has one per output.
INPUT_MAJOR = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


@dataclass
class Start:
    """What a start file says (tests/golden/README.md has its layout)."""

    config: dict
    parameters: dict[str, torch.Tensor]
    # [steps, B, T]
    tokens: torch.Tensor
    targets: torch.Tensor
    losses: list[float]
    rates: list[float]

    @staticmethod
    def load(path: Path, weights: str = "param") -> "Start":
        """Reads a file; `weights` is "param" for the first ones, "final" for the last."""
        with safe_open(path, "pt") as file:
            config = json.loads(file.metadata()["config"])
            if config["accum"] != 1:
                raise SystemExit(f"{path}: gradient accumulation is not compared")
            # Copies: the file's mapping goes when it is closed.
            parameters = {
                name: file.get_tensor(f"{weights}/{name}").clone() for name in config["parameters"]
            }
            ids = {key: file.get_tensor(key)[:, 0].long() for key in ("tokens", "targets")}
            return Start(
                config=config,
                parameters=parameters,
                tokens=ids["tokens"],
                targets=ids["targets"],
                losses=file.get_tensor("losses").tolist(),
                rates=file.get_tensor("lrs").tolist(),
            )


class Attention(nn.Module):
    def __init__(self, c: dict):
        super().__init__()
        self.heads = c["n_head"]
        self.c_attn = nn.Linear(c["d_model"], 3 * c["d_model"], bias=c["bias"])
        self.c_proj = nn.Linear(c["d_model"], c["d_model"], bias=c["bias"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        parts = self.c_attn(x).split(width, dim=2)
        shape = (batch, length, self.heads, width // self.heads)
        q, k, v = (part.view(shape).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(mixed.transpose(1, 2).reshape(batch, length, width))


class FeedForward(nn.Module):
    def __init__(self, c: dict):
        super().__init__()
        self.c_fc = nn.Linear(c["d_model"], c["d_ff"], bias=c["bias"])
        self.c_proj = nn.Linear(c["d_ff"], c["d_model"], bias=c["bias"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, c: dict):
        super().__init__()
        norm = dict(eps=c["layer_norm_eps"], bias=c["bias"])
        self.ln_1 = nn.LayerNorm(c["d_model"], **norm)
        self.attn = Attention(c)
        self.ln_2 = nn.LayerNorm(c["d_model"], **norm)
        self.mlp = FeedForward(c)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Gpt(nn.Module):
    """Its parameters have the names of the start file."""

    def __init__(self, c: dict):
        super().__init__()
        self.wte = nn.Embedding(c["vocab_size"], c["d_model"])
        self.wpe = nn.Embedding(c["block_size"], c["d_model"])
        self.h = nn.ModuleList(Block(c) for _ in range(c["n_layer"]))
        self.ln_f = nn.LayerNorm(c["d_model"], eps=c["layer_norm_eps"], bias=c["bias"])
        self.lm_head = nn.Linear(c["d_model"], c["vocab_size"], bias=False)
        if c["tied"]:
            self.lm_head.weight = self.wte.weight
        self.register_buffer("places", torch.arange(c["block_size"]), persistent=False)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean loss of tokens [B, T]."""
        x = self.wte(tokens) + self.wpe(self.places[: tokens.shape[1]])
        for block in self.h:
            x = block(x)
        logits = self.lm_head(self.ln_f(x))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)

    @torch.no_grad()
    def fill(self, parameters: dict[str, torch.Tensor]) -> None:
        """Takes the weights of a start file; all of them, and nothing else."""
        mine = dict(self.named_parameters())
        if missing := mine.keys() ^ parameters.keys():
            raise SystemExit(f"the start file is of another model: {sorted(missing)}")
        for name, values in parameters.items():
            mine[name].copy_(values.T if name.endswith(INPUT_MAJOR) else values)


def build(start: Start) -> Gpt:
    """The model of a start file, with its weights, whose memory is given back."""
    with torch.device("meta"):
        model = Gpt(start.config)
    model.to_empty(device="cpu")
    if start.config["tied"]:
        model.lm_head.weight = model.wte.weight
    model.places.copy_(torch.arange(start.config["block_size"]))
    model.fill(start.parameters)
    start.parameters.clear()
    return model


def adamw(model: Gpt, c: dict) -> torch.optim.AdamW:
    """Fused AdamW that decays matrices only, as the start file's run did."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() == 2], "weight_decay": c["weight_decay"]},
        {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=tuple(c["betas"]), eps=c["eps"], fused=True)
