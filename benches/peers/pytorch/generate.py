"""One process of PyTorch that continues one prompt, greedily, with a cache of keys and values.

    generate.py FILE.safetensors --prompt 5,3,... --new 256 --dtype bf16 --threads 2 [--compile]

Prints the tokens and the seconds between the first and the last of them as JSON. `--dtype
bf16` holds weights and cache in bf16, so a token reads half the bytes. Without `--compile`
attention reads as much of the cache as is filled; compiled, the shapes stay the same and a
mask hides the rest, or the code would be made anew for each token.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from model import Attention, Gpt, Start, build
from train import forget_peak, memory


class Cache:
    """Keys and values of one stream, [1, heads, block, head width] for each layer."""

    def __init__(self, c: dict, dtype: torch.dtype):
        shape = (1, c["n_head"], c["block_size"], c["d_model"] // c["n_head"])
        self.keys = [torch.zeros(shape, dtype=dtype) for _ in range(c["n_layer"])]
        self.values = [torch.zeros(shape, dtype=dtype) for _ in range(c["n_layer"])]


def attend(
    layer: Attention, x: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
    place: torch.Tensor, mask: torch.Tensor | None, filled: int,
) -> torch.Tensor:
    """Attention of tokens [1, T, C] at `place` to the cache, into which they go."""
    _, length, width = x.shape
    parts = layer.c_attn(x).split(width, dim=2)
    shape = (1, length, layer.heads, width // layer.heads)
    q, k, v = (part.view(shape).transpose(1, 2) for part in parts)
    keys.index_copy_(2, place, k)
    values.index_copy_(2, place, v)
    if mask is None:
        keys, values = keys[:, :, :filled], values[:, :, :filled]
    # The prompt comes first, into an empty cache; later tokens see all that is filled.
    causal = length > 1
    mixed = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, is_causal=causal)
    return layer.c_proj(mixed.transpose(1, 2).reshape(1, length, width))


def next_token(
    model: Gpt, cache: Cache, tokens: torch.Tensor, place: torch.Tensor,
    mask: torch.Tensor | None, filled: int,
) -> torch.Tensor:
    """The likeliest token after tokens [1, T] at the places [T], as [1, 1]."""
    x = model.wte(tokens) + model.wpe(place)
    for block, keys, values in zip(model.h, cache.keys, cache.values):
        x = x + attend(block.attn, block.ln_1(x), keys, values, place, mask, filled)
        x = x + block.mlp(block.ln_2(x))
    return model.lm_head(model.ln_f(x[:, -1:])).argmax(dim=-1)


@torch.inference_mode()
def speak(
    model: Gpt, c: dict, prompt: list[int], new: int, compiled: bool
) -> tuple[list[int], float]:
    """The new tokens, and the seconds from the first to the last."""
    step = torch.compile(next_token) if compiled else next_token
    # Twice where code is made: the first time is not the work.
    for _ in range(2 if compiled else 1):
        cache = Cache(c, model.wte.weight.dtype)
        places = torch.arange(c["block_size"])
        length = len(prompt)
        token = next_token(model, cache, torch.tensor([prompt]), places[:length], None, length)
        said = [token.item()]
        begin = time.perf_counter()
        for at in range(length, length + new - 1):
            mask = (places <= at)[None, None, None] if compiled else None
            # A number that changed would be compiled in: only the eager way reads it.
            filled = c["block_size"] if compiled else at + 1
            token = step(model, cache, token, places[at : at + 1], mask, filled)
            said.append(token.item())
        seconds = time.perf_counter() - begin
    return said, seconds


def bandwidth(size: int) -> float:
    """Bytes a second that these threads read of `size` bytes, over and over; the best of ten."""
    values = torch.ones(size // 4)
    best = float("inf")
    for _ in range(10):
        begin = time.perf_counter()
        values.sum()
        best = min(best, time.perf_counter() - begin)
    return size / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--prompt", type=lambda text: [int(id) for id in text.split(",")])
    parser.add_argument("--new", type=int, required=True)
    parser.add_argument("--dtype", choices=("f32", "bf16"), required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    start = Start.load(args.file, "final")
    c = start.config
    model = build(start)
    if args.dtype == "bf16":
        model.to(torch.bfloat16)
    forget_peak()
    tokens, seconds = speak(model, c, args.prompt, args.new, args.compile)
    peak = memory("VmHWM")
    # All of them for each token, but one row of the table of places.
    read = set(model.parameters()) - {model.wpe.weight}
    weights = sum(p.numel() * p.element_size() for p in read)
    result = {
        "tokens": tokens,
        "seconds": seconds,
        "peak_rss": peak,
        "weights": weights,
        "bandwidth": bandwidth(weights),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
