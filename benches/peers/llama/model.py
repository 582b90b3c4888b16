"""A start file's model as a GGUF file, which llama.cpp reads.

Its architecture `gpt2` is the same model: learned positions, norms before, GELU with tanh, the
output projection of the token table. Matrices are rounded to bf16 if so wanted, as
`convert_hf_to_gguf.py` of llama.cpp does it; norms, biases and the table of places stay f32.
"""

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from safetensors import safe_open

# llama.cpp's names for the tensors of block N, and the start file's.
OF_BLOCK = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
NORMS = ("attn_norm", "ffn_norm")


def write(path: Path, c: dict, tensor: Callable[[str], np.ndarray], dtype: str) -> int:
    """Writes the model of a config, whose tensors `tensor` gives by the start file's names;
    returns the bytes that a token reads of it."""
    if not c["bias"] or not c["tied"]:
        raise SystemExit("llama.cpp's gpt2 has biases, and one table for both ends")
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(c["block_size"])
    writer.add_embedding_length(c["d_model"])
    writer.add_feed_forward_length(c["d_ff"])
    writer.add_block_count(c["n_layer"])
    writer.add_head_count(c["n_head"])
    writer.add_layer_norm_eps(c["layer_norm_eps"])
    writer.add_vocab_size(c["vocab_size"])
    # Ids go in and come out: no tokenizer.
    writer.add_tokenizer_model("none")
    read = 0

    def add(name: str, values: np.ndarray, rounded: bool) -> None:
        nonlocal read
        values = np.ascontiguousarray(values, dtype=np.float32)
        if rounded and dtype == "bf16":
            bf16 = gguf.GGMLQuantizationType.BF16
            values = gguf.quants.quantize(values, bf16)
            writer.add_tensor(name, values, raw_dtype=bf16)
        else:
            writer.add_tensor(name, values)
        # One row of the places is read for a token.
        read += 0 if name == "position_embd.weight" else values.nbytes

    add("token_embd.weight", tensor("wte.weight"), True)
    add("position_embd.weight", tensor("wpe.weight"), False)
    for part in ("weight", "bias"):
        add(f"output_norm.{part}", tensor(f"ln_f.{part}"), False)
    for block in range(c["n_layer"]):
        for theirs, ours in OF_BLOCK.items():
            weight = tensor(f"h.{block}.{ours}.weight")
            # A start file has a row per input, GGUF one per output.
            is_norm = theirs in NORMS
            add(f"blk.{block}.{theirs}.weight", weight if is_norm else weight.T, not is_norm)
            add(f"blk.{block}.{theirs}.bias", tensor(f"h.{block}.{ours}.bias"), False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read


def of_start_file(file: Path, path: Path, dtype: str) -> int:
    """Writes the last weights of a start file (tests/golden/README.md has its layout)."""
    with safe_open(file, "np") as start:
        config = json.loads(start.metadata()["config"])
        return write(path, config, lambda name: start.get_tensor(f"final/{name}"), dtype)
