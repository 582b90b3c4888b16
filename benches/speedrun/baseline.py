"""One process of the PyTorch baseline: a recipe with AdamW, until its time is up.

    baseline.py SHARDS characters --seconds 60 --seed 1 --threads 2 --dtype f32 [--compile]
        [--batch SEQUENCES] [--rate R] [--steps N]

The clock has the training loop alone: importing, reading tokens and compiling (three steps, which are taken
back) are not in it. Prints steps, seconds and the loss of all validation tokens as JSON.
"""

import argparse
import copy
import json
import math
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "peers" / "pytorch"))
from model import Gpt, adamw  # noqa: E402

@dataclass(frozen=True)
class Work:
    """A model, and the recipe that it is trained by."""

    block: int
    batch: int
    n_layer: int
    n_head: int
    d_model: int
    # Of the schedule: a warm-up, then half a cosine down to a tenth over all steps, which stays.
    steps: int
    warmup: int
    rate: float
    betas: tuple[float, float]

    def model(self, vocabulary: int) -> dict:
        return {
            "vocab_size": vocabulary,
            "block_size": self.block,
            "n_layer": self.n_layer,
            "n_head": self.n_head,
            "d_model": self.d_model,
            "d_ff": 4 * self.d_model,
            "bias": False,
            "tied": True,
            "layer_norm_eps": 1e-5,
        }

    def rate_of(self, step: int) -> float:
        if step < self.warmup:
            return self.rate * (step + 1) / (self.warmup + 1)
        done = min(1.0, (step - self.warmup) / (self.steps - self.warmup))
        least = self.rate / 10
        return least + 0.5 * (1 + math.cos(math.pi * done)) * (self.rate - least)


WORKS = {
    # config/train_shakespeare_char.py with the flags of nanoGPT's README for a CPU.
    "characters": Work(64, 12, 4, 4, 128, 2000, 100, 1e-3, (0.9, 0.99)),
    # The model of `--preset reference`; batch and rate are the best of nine that `run.sh tune` has tried, and the
    # schedule's length is about what a minute has room for.
    "reference": Work(128, 8, 4, 8, 256, 490, 49, 2e-3, (0.9, 0.95)),
}


def initialise(model: Gpt, layers: int) -> None:
    """GPT-2's first weights, as nanoGPT has them."""
    for name, values in model.named_parameters():
        if values.dim() == 2:
            narrow = name.endswith("c_proj.weight")
            std = 0.02 / math.sqrt(2 * layers) if narrow else 0.02
            torch.nn.init.normal_(values, mean=0.0, std=std)


def tokens_of(folder: Path, part: str) -> torch.Tensor:
    """All tokens of a part's shards (runner/src/data/shard.rs has their layout)."""
    shards = sorted(folder.glob(f"{part}*.bin"))
    narrow = [np.fromfile(shard, dtype="<u2", offset=1024) for shard in shards]
    return torch.from_numpy(np.concatenate(narrow).astype(np.int64))


class Trained:
    """A model on its way, and what a step of it is."""

    def __init__(self, work: Work, vocabulary: int, args: argparse.Namespace) -> None:
        self.work = work
        self.model = Gpt(work.model(vocabulary))
        initialise(self.model, work.n_layer)
        self.optimizer = adamw(self.model, {"weight_decay": 0.1, "betas": work.betas, "eps": 1e-8})
        self.parameters = list(self.model.parameters())
        self.half = args.dtype == "bf16"
        self.loss_of = torch.compile(self.model) if args.compile else self.model

    def loss(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.half):
            return self.loss_of(tokens, targets)

    def step(self, tokens: torch.Tensor, targets: torch.Tensor, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.work.rate_of(step)
        self.loss(tokens, targets).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def batch(data: torch.Tensor, work: Work) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows from anywhere, as nanoGPT draws them."""
    starts = torch.randint(len(data) - work.block, (work.batch,))
    tokens = torch.stack([data[i : i + work.block] for i in starts])
    return tokens, torch.stack([data[i + 1 : i + 1 + work.block] for i in starts])


@torch.no_grad()
def validate(model: Gpt, data: torch.Tensor, block: int) -> float:
    """Mean loss of all whole windows, one behind the other, in f32."""
    count = (len(data) - 1) // block
    tokens = data[: count * block].view(count, block)
    targets = data[1 : count * block + 1].view(count, block)
    parts = [slice(i, i + 64) for i in range(0, count, 64)]
    losses = [model(tokens[part], targets[part]).item() * len(tokens[part]) for part in parts]
    return sum(losses) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", type=Path)
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--dtype", choices=["f32", "bf16"], required=True)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--batch", type=int, help="sequences of a batch [default: the work's]")
    parser.add_argument("--rate", type=float, help="peak learning rate [default: the work's]")
    parser.add_argument("--steps", type=int, help="length of the schedule [default: the work's]")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    work = WORKS[args.work]
    given = {name: getattr(args, name) for name in ("batch", "rate", "steps") if getattr(args, name)}
    work = replace(work, **given)
    if args.steps:
        work = replace(work, warmup=max(1, args.steps // 10))
    train, val = (tokens_of(args.shards, part) for part in ("train", "val"))
    vocabulary = 1 + int(max(train.max(), val.max()))
    trained = Trained(work, vocabulary, args)
    # Whatever is compiled or set up in the first steps is not training.
    first, state = copy.deepcopy(trained.model.state_dict()), torch.get_rng_state()
    for step in range(3):
        trained.step(*batch(train, work), step)
    trained.model.load_state_dict(first)
    trained.optimizer.state.clear()
    torch.set_rng_state(state)

    begin, step = time.perf_counter(), 0
    while time.perf_counter() - begin < args.seconds:
        trained.step(*batch(train, work), step)
        step += 1
    seconds = time.perf_counter() - begin
    loss = validate(trained.model, val, work.block)
    done = {"steps": step, "tokens": step * work.batch * work.block, "seconds": seconds, "loss": loss}
    print(json.dumps(done))


if __name__ == "__main__":
    main()
