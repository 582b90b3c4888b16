"""One process of PyTorch on one work: prints the time and loss of each step as JSON.

    train.py START.safetensors --dtype f32 --threads 2 --steps 20 [--compile]

The clock of a step covers all that `cllm train` does in one: batch, forward, backward,
clip, update and the loss as a number.
"""

import argparse
import contextlib
import json
import re
import time
from pathlib import Path

import torch

from model import Start, adamw, build

# f32; products in bf16 by autocast; products in bf16 with tensors in f32.
DTYPES = ("f32", "bf16", "medium")


def memory(key: str) -> int:
    """A figure of /proc/self/status in bytes; 0 where there is none."""
    with contextlib.suppress(OSError):
        found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) * 1024 if found else 0
    return 0


def forget_peak() -> None:
    """Starts the largest resident size over: reading the start file is not the work."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("start", type=Path)
    parser.add_argument("--dtype", choices=DTYPES, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    if args.dtype == "medium":
        torch.set_float32_matmul_precision("medium")
    imported = memory("VmRSS")
    start = Start.load(args.start)
    c = start.config
    model = build(start)
    optimizer = adamw(model, c)
    parameters = list(model.parameters())
    loss_of = torch.compile(model) if args.compile else model
    forget_peak()

    seconds, losses = [], []
    for step in range(args.steps):
        begin = time.perf_counter()
        # Past the end of the file its batches come again, at its last rate.
        n = step % len(start.tokens)
        for group in optimizer.param_groups:
            group["lr"] = start.rates[min(step, len(start.rates) - 1)]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.dtype == "bf16"):
            loss = loss_of(start.tokens[n], start.targets[n])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, c["clip"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        seconds.append(time.perf_counter() - begin)

    result = {
        "torch": torch.__version__,
        "seconds": seconds,
        "losses": losses,
        "peak_rss": memory("VmHWM"),
        "imported_rss": imported,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
