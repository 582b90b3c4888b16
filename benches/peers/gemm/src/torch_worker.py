"""Times products of PyTorch for `torch.rs`, which says over a pipe which ones and how often."""

import sys
import time

import torch

torch.set_num_threads(int(sys.argv[1]))
torch.set_grad_enabled(False)
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def elements(rows: int, cols: int, turned: bool, seed: int) -> torch.Tensor:
    """Multiples of 1/16: `problem.rs` says why."""
    generator = torch.Generator().manual_seed(seed)
    shape = (cols, rows) if turned else (rows, cols)
    data = torch.randint(-16, 17, shape, generator=generator).float() / 16
    return data.t() if turned else data


def main() -> None:
    """Answers every line with one."""
    products = {}
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"PyTorch {torch.__version__}, {capability}", flush=True)
    for line in sys.stdin:
        match line.split():
            case ["product", name, *numbers]:
                m, n, k, a_turned, b_turned = map(int, numbers)
                # Copying to another type keeps the strides.
                a = elements(m, k, bool(a_turned), 1).to(DTYPES[name])
                b = elements(k, n, bool(b_turned), 2).to(DTYPES[name])
                c = torch.full((m, n), float("nan"), dtype=DTYPES[name])
                products[name] = (a, b, c)
                torch.mm(a, b, out=c)
                expected = (a.double() @ b.double()).to(DTYPES[name])
                print("right" if torch.equal(c, expected) else "wrong result", flush=True)
            case ["time", name, warm, timed]:
                a, b, c = products[name]
                for _ in range(int(warm)):
                    torch.mm(a, b, out=c)
                begin = time.perf_counter()
                for _ in range(int(timed)):
                    torch.mm(a, b, out=c)
                print(time.perf_counter() - begin, flush=True)
            case _:
                return


main()
