"""Makes tests/golden/gguf/blocks.json: blocks of small numbers, and what ggml's own Python package reads
in them. Needs benches/peers/requirements-llama.txt (gguf and numpy of it).

    python3 tests/golden/make_gguf.py
"""

import json
from pathlib import Path

import gguf
import numpy as np

OUT = Path(__file__).parent / "gguf" / "blocks.json"
Kinds = gguf.GGMLQuantizationType
# Where the scales of f16 lie in a block: two bytes each, which any bytes would not be.
SCALES = {
    Kinds.Q8_0: [0],
    Kinds.Q4_0: [0],
    Kinds.Q4_1: [0, 2],
    Kinds.Q6_K: [208],
    Kinds.Q5_0: [0],
    Kinds.Q5_1: [0, 2],
    Kinds.Q4_K: [0, 2],
    Kinds.Q5_K: [0, 2],
}

random = np.random.default_rng(1)
golden = {}
for kind, places in SCALES.items():
    values, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (2, size), dtype=np.uint8)
    for block in blocks:
        for place in places:
            block[place : place + 2] = np.float16(random.normal()).reshape(1).view(np.uint8)
    read = gguf.quants.dequantize(blocks.reshape(1, -1), kind).reshape(-1)
    assert len(read) == 2 * values
    golden[kind.name] = {
        "bytes": blocks.reshape(-1).tolist(),
        "values": [float(value) for value in read],
    }
OUT.parent.mkdir(exist_ok=True)
OUT.write_text("{\n" + ",\n".join(f'"{k}": {json.dumps(v)}' for k, v in golden.items()) + "\n}\n")
