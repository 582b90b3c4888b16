"""Parts of a recipe in PyTorch, before they are built: the loss that each gives, seed by seed.

    prototype.py SHARDS [--seeds N] [--shape characters] VARIANT...

The base is the recipe of `characters.toml` (or of `reference.toml`), by PyTorch alone and in f32; a VARIANT names what is
otherwise, as `"rate=2e-2 skip=true"`, by the fields of `Recipe` below. All variants see as many tokens. Prints, for each of
them, the mean loss of validation tokens with a 95 % interval (Student's t), the difference to the base by seed
with its own, and the time of a step by that of the base's: of an eager program, so a hint at most.
"""

import argparse
import math
import sys
import time
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from statistics import mean, median

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent))
from baseline import tokens_of  # noqa: E402
from speedrun import interval  # noqa: E402

# Windows of the validation tokens that a loss is of.
WINDOWS = 512


@dataclass(frozen=True)
class Recipe:
    """A model and how it is trained; the defaults are the base."""

    layers: int = 4
    heads: int = 4
    width: int = 128
    length: int = 64
    batch: int = 12
    steps: int = 260
    warmup: int = 5
    rate: float = 3e-2
    # Share of the run at the end over which the rate falls to zero.
    fall: float = 1.0
    momentum: float = 0.85
    # Momentum of the first step, from which it rises over the first `momentum_steps`.
    first_momentum: float = 0.0
    momentum_steps: int = 0
    nesterov: bool = True
    # Steps of Muon's iteration, and the smallest singular value that they are fitted for; of 0, the polynomial of Jordan et
    # al. (2024) each time, of which there are five. No step is fitted to values below `cushion` of its largest: without
    # one it would take some in between to nothing.
    newton_schulz: int = 3
    lower: float = 1e-3
    cushion: float = 0.02407327424182761
    # A second moment for each output of a matrix behind the polynomial (Li et al., "NorMuon", 2025); its decay. With next to
    # none all outputs of a step are of one length, as `cllm` has them.
    normuon: float = 1e-6
    # Steps of a matrix by sqrt(rows / cols) of outputs by inputs rather than by the longer side.
    by_shape: bool = False
    decay: float = 0.1
    # Weight decay only where the step goes towards zero too (Chen et al., "Cautious Weight Decay", 2025).
    cautious: bool = False
    betas: str = "0.9,0.95"
    clip: float = 1.0
    # Rates of the rest by that of matrices: the table, the output projection, vectors.
    table_rate: float = 1.0
    head_rate: float = 1.0
    vector_rate: float = 1.0
    untied: bool = True
    # Share of the run in which the table is the output projection too; what that then begins as.
    late: float = 0.0
    # Deviation of the table's first numbers.
    table_init: float = 0.02
    init: float = 0.02
    zero_init: bool = False
    softcap: float = 0.0
    # A norm behind the table.
    table_norm: bool = False
    # Each token has besides its row of the table those of so many tokens before it, each by its own weight for
    # each column; what they begin as.
    previous: int = 3
    previous_init: float = 0.0
    # Rows of the table are so many times as long in the model's input, and by weights that are learnt if `own`.
    enlarged: float = 16.0
    own: bool = False
    # Such a sum of rows in front of attention, and in front of the feed-forward layer, in each block.
    mix_attention: int = 0
    mix_feed: int = 0
    # Such a sum of keys and of values, behind their projections.
    mix_keys: int = 0
    mix_values: int = 0
    # Rows of the token added to its values, from a table for each of the first and last so many blocks.
    values: int = 0
    # Each block's input has a share of the model's input besides, learnt.
    skip: bool = False
    # Such a share by columns, and no weight of the block's own input.
    share: bool = False
    # A weight of each block's input alone.
    scale: bool = False
    # The input of a block of the first half added to that of its twin in the second half, by a learnt share.
    unet: bool = False
    # A gate of each head's output, by the row that attention has read (Qiu et al., 2025).
    gate: bool = False
    # Tokens of the first windows, and the share of the run over which they grow.
    first_length: int = 0
    length_share: float = 0.5
    # The same of the tokens that attention sees.
    first_window: int = 0
    # Sequences of the first batches, which grow in the same way; there are more steps then.
    first_batch: int = 0
    # Weight of the loss of the token after the next one, which falls to zero with the rate.
    second_token: float = 0.0
    # The weights at the end are an average with this decay.
    average: float = 0.0
    ff: int = 4
    # Table and output projection begin as factors of how often tokens follow each other, smoothed by so much:
    # runner/src/train/bigrams.rs has the formulas.
    counts: float = 0.0
    # How long rows of the table are then, by the root of the width.
    counted_size: float = 1.0

    def changed(self, text: str) -> "Recipe":
        kinds = {field.name: type(getattr(self, field.name)) for field in fields(self)}
        more = {}
        for word in text.split():
            name, _, value = word.partition("=")
            if name not in kinds:
                raise SystemExit(f"{name}: not one of {', '.join(kinds)}")
            kind = kinds[name]
            more[name] = value != "false" if kind is bool else kind(value)
        return replace(self, **more)


def rotary(length: int, head: int) -> tuple[torch.Tensor, torch.Tensor]:
    rates = 1e4 ** (-torch.arange(0, head, 2) / head)
    angles = torch.outer(torch.arange(length), rates)
    return angles.cos(), angles.sin()


def turn(x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    cos, sin = (part[: x.shape[-2]] for part in angles)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def norm(x: torch.Tensor, gain: torch.Tensor | None = None) -> torch.Tensor:
    return F.rms_norm(x, x.shape[-1:], gain, 1e-5)


def behind(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """`x` [B, T, ...] and what is in the rows before, by weights of [rows before, ...]."""
    sum_ = x
    for back, weight in enumerate(weights, 1):
        if back < x.shape[1]:
            sum_ = sum_ + weight * F.pad(x[:, :-back], [0, 0] * (x.dim() - 2) + [back, 0])
    return sum_


@cache
def factors(train: torch.Tensor, vocabulary: int, rank: int, smoothing: float) -> list[torch.Tensor]:
    """Logarithms of the tokens' shares, and two factors of what pairs say besides."""
    pairs, times = torch.unique(train[:-1] * vocabulary + train[1:], return_counts=True)
    before, behind = pairs // vocabulary, pairs % vocabulary
    shares = torch.bincount(train[1:], minlength=vocabulary) + 0.5
    shares = shares / shares.sum()
    followers = torch.bincount(before, minlength=vocabulary)
    values = torch.log1p(times / (smoothing * followers[before] * shares[behind])).float()
    of = torch.sparse_coo_tensor(torch.stack([before, behind]), values, (vocabulary, vocabulary)).coalesce()
    turned = of.t().coalesce()
    right = torch.randn(vocabulary, rank, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        right = torch.linalg.qr(turned @ torch.linalg.qr(of @ right)[0])[0]
    return [shares.log().float(), of @ right, right]


def counted(recipe: Recipe, vocabulary: int, train: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first table and output projection of a recipe with counts."""
    d, root = recipe.width, math.sqrt(recipe.width)
    shares, left, right = factors(train, vocabulary, min(d - 2, vocabulary), recipe.counts)
    alpha = 0.9 * root / left.norm(dim=1).max()
    table, head = torch.zeros(vocabulary, d), torch.zeros(vocabulary, d)
    table[:, 0], table[:, 2 : 2 + left.shape[1]] = 0.3 * root, alpha * left
    table[:, 1] = (d - table.square().sum(dim=1)).clamp_min(0).sqrt()
    head[:, 0], head[:, 2 : 2 + left.shape[1]] = (shares - shares.mean()) / (0.3 * root), right / alpha
    return recipe.counted_size * table, head


class Model:
    """Parameters by name, and the loss of them."""

    def __init__(self, recipe: Recipe, vocabulary: int, train: torch.Tensor) -> None:
        r, d = recipe, recipe.width
        self.recipe = r
        small = 0.0 if r.zero_init else r.init / math.sqrt(2 * r.layers)
        self.of = {"table": torch.randn(vocabulary, d) * r.table_init, "gain": torch.ones(d)}
        if r.untied and not r.late:
            self.of["head"] = torch.randn(vocabulary, d) * (0.0 if r.zero_init else 0.02)
        if r.previous:
            self.of["previous"] = torch.full((r.previous, d), r.previous_init)
        if r.own:
            self.of["own"] = torch.ones(d)
        if r.second_token:
            self.of["second"] = torch.eye(d)
        shapes = {"q": (d, d), "k": (d, d), "v": (d, d), "o": (d, d), "fc": (r.ff * d, d), "out": (d, r.ff * d)}
        for layer in range(r.layers):
            for name, shape in shapes.items():
                std = small if name in ("o", "out") else r.init
                self.of[f"{layer}.{name}"] = torch.randn(shape) * std
            ones = {"gain1": d, "gain2": d, "gain_q": d // r.heads, "gain_k": d // r.heads}
            self.of |= {f"{layer}.{name}": torch.ones(len_) for name, len_ in ones.items()}
            mixes = {"mix1": r.mix_attention, "mix2": r.mix_feed, "mix_k": r.mix_keys, "mix_v": r.mix_values}
            self.of |= {f"{layer}.{name}": torch.zeros(back, d) for name, back in mixes.items() if back}
            if min(layer, r.layers - 1 - layer) < r.values:
                self.of[f"{layer}.values"] = torch.zeros(vocabulary, d)
            if r.skip:
                self.of[f"{layer}.skip"] = torch.tensor([1.0, 0.0])
            if r.share and layer:
                self.of[f"{layer}.share"] = torch.zeros(d)
            if r.scale:
                self.of[f"{layer}.scale"] = torch.ones(1)
            if r.unet and layer >= r.layers // 2:
                self.of[f"{layer}.unet"] = torch.zeros(1)
            if r.gate:
                self.of[f"{layer}.gate"] = torch.zeros(r.heads, d)
        if r.counts:
            self.of["table"], self.of["head"] = counted(r, vocabulary, train)
        for value in self.of.values():
            value.requires_grad_()
        self.angles = rotary(r.length, d // r.heads)

    def block(self, layer: int, x: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        r, of = self.recipe, lambda name: self.of.get(f"{layer}.{name}")
        batch, length, width = x.shape
        shape = (batch, length, r.heads, width // r.heads)
        row = norm(x, of("gain1"))
        if r.mix_attention:
            row = behind(row, of("mix1"))
        q, k, v = (F.linear(row, of(name)) for name in "qkv")
        if r.mix_keys:
            k = behind(k, of("mix_k"))
        if r.mix_values:
            v = behind(v, of("mix_v"))
        if (table := of("values")) is not None:
            v = v + F.embedding(tokens, table)
        q, k, v = (part.view(shape).transpose(1, 2) for part in (q, k, v))
        q, k = (turn(norm(part, of(gain)), self.angles) for part, gain in ((q, "gain_q"), (k, "gain_k")))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        if r.gate:
            mixed = mixed * 2 * torch.sigmoid(F.linear(row, of("gate"))).transpose(1, 2).unsqueeze(-1)
        x = x + F.linear(mixed.transpose(1, 2).reshape(x.shape), of("o"))
        row = norm(x, of("gain2"))
        if r.mix_feed:
            row = behind(row, of("mix2"))
        return x + F.linear(F.relu(F.linear(row, of("fc"))).square(), of("out"))

    def loss(self, tokens: torch.Tensor, targets: torch.Tensor, window: int = 0, second: float = 0.0) -> torch.Tensor:
        r = self.recipe
        first = x = r.enlarged * F.embedding(tokens, self.of["table"])
        if r.previous:
            x = behind(x, self.of["previous"])
        if r.own:
            x = x + (self.of["own"] - 1) * first
        if r.table_norm:
            first = x = norm(x)
        mask = None
        if window and window < tokens.shape[1]:
            places = torch.arange(tokens.shape[1])
            apart = places[:, None] - places
            mask = (apart >= 0) & (apart < window)
        inputs = []
        for layer in range(r.layers):
            inputs.append(x)
            if r.skip:
                x = self.of[f"{layer}.skip"][0] * x + self.of[f"{layer}.skip"][1] * first
            if r.share and layer:
                x = x + self.of[f"{layer}.share"] * first
            if r.scale:
                x = self.of[f"{layer}.scale"] * x
            if r.unet and layer >= r.layers // 2:
                x = x + self.of[f"{layer}.unet"] * inputs[r.layers - 1 - layer]
            x = self.block(layer, x, tokens, mask)
        x = norm(x, self.of["gain"])
        loss = self.loss_of(x, targets)
        if second:
            ahead = F.linear(x[:, :-1], self.of["second"])
            loss = loss + second * self.loss_of(ahead, targets[:, 1:])
        return loss

    def loss_of(self, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = F.linear(x, self.of.get("head", self.of["table"])).flatten(0, 1)
        if cap := self.recipe.softcap:
            logits = cap * torch.tanh(logits / cap)
        return F.cross_entropy(logits, targets.flatten())


JORDAN = (3.4445, -4.775, 2.0315)


@cache
def fitted(lower: float, steps: int, cushion: float) -> list[tuple[float, float, float]]:
    """Factors of a polynomial a x + b x^3 + c x^5 for each step, which together take all of [lower, 1] as near to 1 as such
    steps can, but for the cushion (Amsel et al., "The Polar Express", 2025, section 3)."""
    upper, found = 1.0, []
    for _ in range(steps):
        # Remez: errors of one size and of signs in turns at both ends and at the two extrema between them.
        low = max(lower, cushion * upper)
        inner = (3 * low + upper) / 4, (low + 3 * upper) / 4
        for _ in range(100):
            places = (low, inner[0], inner[1], upper)
            rows = [[x, x**3, x**5, sign] for x, sign in zip(places, (1, -1, 1, -1))]
            a, b, c, _ = torch.linalg.solve(torch.tensor(rows, dtype=torch.float64), torch.ones(4, dtype=torch.float64)).tolist()
            root = math.sqrt(9 * b * b - 20 * a * c)
            inner = tuple(math.sqrt((-3 * b + sign * root) / (10 * c)) for sign in (-1, 1))
        # What becomes of all of [lower, upper] lies around 1.
        ends = [a * x + b * x**3 + c * x**5 for x in (lower, upper)]
        found.append(tuple(2 * factor / sum(ends) for factor in (a, b, c)))
        lower, upper = (2 * end / sum(ends) for end in ends)
    return found


def orthogonalised(x: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """Muon's direction of some matrices of one shape [N, outputs, inputs]: core/src/muon.rs has the formulas."""
    wide = x if x.shape[1] <= x.shape[2] else x.mT
    wide = wide / ((1.02 if recipe.lower else 1.0) * wide.norm(dim=(1, 2), keepdim=True) + 1e-7)
    steps = recipe.newton_schulz
    for a, b, c in fitted(recipe.lower, steps, recipe.cushion) if recipe.lower else [JORDAN] * steps:
        gram = wide @ wide.mT
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide if x.shape[1] <= x.shape[2] else wide.mT


class Optimizer:
    """Muon for matrices of blocks, AdamW for the rest."""

    def __init__(self, model: Model) -> None:
        self.recipe, self.model = model.recipe, model
        matrices, groups = {}, {}
        for name, value in model.of.items():
            short = name.split(".")[-1]
            if short in ("q", "k", "v", "o", "fc", "out", "second"):
                matrices.setdefault(value.shape, []).append(value)
                continue
            rate = {"head": self.recipe.head_rate, "table": self.recipe.table_rate, "values": self.recipe.table_rate}
            groups.setdefault((rate.get(short, self.recipe.vector_rate), value.dim() == 2), []).append(value)
        self.stacks = [(list_, torch.zeros(len(list_), *shape), torch.zeros(len(list_), shape[0], 1))
                       for shape, list_ in matrices.items()]
        self.adamw = torch.optim.AdamW(
            [{"params": list_, "by": by, "weight_decay": self.recipe.decay if matrix else 0.0}
             for (by, matrix), list_ in groups.items()],
            betas=tuple(float(x) for x in self.recipe.betas.split(",")), eps=1e-8, fused=True)

    def untie(self) -> None:
        """Makes an output projection of what the table has learnt."""
        head = self.model.of["head"] = self.model.of["table"].detach().clone().requires_grad_()
        self.adamw.add_param_group({"params": [head], "by": self.recipe.head_rate, "weight_decay": self.recipe.decay})

    @torch.no_grad()
    def step(self, rate: float, step: int) -> None:
        r = self.recipe
        torch.nn.utils.clip_grad_norm_(self.model.of.values(), r.clip)
        for group in self.adamw.param_groups:
            group["lr"] = rate * group["by"]
        self.adamw.step()
        momentum = r.momentum
        if step < r.momentum_steps:
            momentum = r.first_momentum + (r.momentum - r.first_momentum) * step / r.momentum_steps
        for list_, m, second in self.stacks:
            g = torch.stack([value.grad for value in list_])
            m.mul_(momentum).add_(g)
            x = orthogonalised(g + momentum * m if r.nesterov else m, r)
            if r.normuon:
                size = x.norm(dim=(1, 2), keepdim=True)
                second.lerp_(x.square().mean(dim=2, keepdim=True), 1 - r.normuon)
                x = x / (second / (1 - r.normuon ** (step + 1))).sqrt().add(1e-8)
                x = x * (size / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-12))
            rows, cols = x.shape[1:]
            x = x * (0.2 * math.sqrt(max(rows, cols)) if not r.by_shape
                     else 0.2 * math.sqrt(max(1.0, rows / cols)) * math.sqrt(r.width))
            for value, of in zip(list_, x):
                shrink = r.decay * value
                if r.cautious:
                    shrink = shrink * (of * value > 0)
                value.sub_(rate * (shrink + of))
        for value in self.model.of.values():
            value.grad = None


def grown(first: int, last: int, share: float, done: float, unit: int) -> int:
    """A size on its way from the first to the last, in units."""
    if not first or done >= share:
        return last
    return max(unit, round((first + (last - first) * done / share) / unit) * unit)


def trained(recipe: Recipe, train: torch.Tensor, val: torch.Tensor, vocabulary: int, seed: int) -> tuple[float, float]:
    """The loss of a run, and the seconds that it took."""
    r = recipe
    torch.manual_seed(seed)
    model = Model(r, vocabulary, train)
    optimizer = Optimizer(model)
    average = None
    budget, seen, step = r.steps * r.batch * r.length, 0, 0
    order, at = torch.randperm(len(train) // r.length - 1), 0
    begin = time.process_time()
    while seen < budget:
        done = seen / budget
        if r.late and done >= r.late and "head" not in model.of:
            optimizer.untie()
        length = grown(r.first_length, r.length, r.length_share, done, 8)
        # Shorter windows are more of them, and fill a whole one.
        while r.length % length:
            length -= 1
        count = grown(r.first_batch, r.batch, r.length_share, done, 1)
        starts = order[at : at + count] * r.length
        at += count
        rows = torch.stack([train[i : i + r.length + 1] for i in starts])
        tokens, targets = rows[:, :-1].reshape(-1, length), rows[:, 1:].reshape(-1, length)
        window = grown(r.first_window, 0, r.length_share, done, 8)
        fall = min(1.0, (1 - done) / r.fall)
        model.loss(tokens, targets, window, r.second_token * fall).backward()
        rise = min(1.0, (step + 1) / (r.warmup + 1))
        optimizer.step(r.rate * rise * fall, step)
        if r.average:
            now = [value.detach() for value in model.of.values()]
            average = average or [value.clone() for value in now]
            torch._foreach_lerp_(average, now, 1 - min(r.average, (step + 1) / (step + 10)))
        seen += tokens.numel()
        step += 1
    seconds = time.process_time() - begin
    with torch.no_grad():
        if r.average:
            torch._foreach_copy_(list(model.of.values()), average)
        count = min(WINDOWS, (len(val) - 1) // r.length)
        tokens = val[: count * r.length].view(count, -1)
        targets = val[1 : count * r.length + 1].view(count, -1)
        losses = [model.loss(tokens[i : i + 64], targets[i : i + 64]).item() for i in range(0, count, 64)]
    return mean(losses), seconds


SHAPES = {
    "characters": "",
    "reference": "width=256 heads=8 length=128 batch=8 steps=60 warmup=2 rate=1e-2 table_rate=0.25 head_rate=0.05 momentum=0.8 previous=0 enlarged=1 zero_init=true counts=4 softcap=10",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", type=Path)
    parser.add_argument("variants", nargs="*")
    parser.add_argument("--base", default="", help="what the base is other than the recipe")
    parser.add_argument("--shape", choices=SHAPES, default="characters")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_intermixed_args()
    torch.set_num_threads(args.threads)
    train, val = (tokens_of(args.shards, part) for part in ("train", "val"))
    vocabulary = 1 + int(max(train.max(), val.max()))
    base = Recipe().changed(SHAPES[args.shape]).changed(args.base)
    recipes = {"": base} | {text: base.changed(text) for text in args.variants}
    runs = {text: [] for text in recipes}
    for seed in range(args.first, args.first + args.seeds):
        for text, recipe in recipes.items():
            runs[text].append(trained(recipe, train, val, vocabulary, seed))
            print(f"seed {seed} {text or 'base'}: {runs[text][-1][0]:.4f}", file=sys.stderr, flush=True)
    print(f"{args.shape}, {args.base or 'the recipe'}: {args.seeds} seeds, {base.steps * base.batch * base.length} tokens\n")
    print("| variant | loss | 95 % | against the base | 95 % | time |\n|---|---|---|---|---|---|")
    for text, of in runs.items():
        losses = [loss for loss, _ in of]
        apart = [loss - other for loss, (other, _) in zip(losses, runs[""])]
        slower = median(a[1] / b[1] for a, b in zip(of, runs[""]))
        print(f"| {text or 'base'} | {mean(losses):.4f} | {interval(losses):.4f} | {mean(apart):+.4f} "
              f"| {interval(apart):.4f} | {slower:.2f} |")


if __name__ == "__main__":
    main()
