"""What start files say, read without PyTorch (tests/golden/README.md has their layout)."""

import json
from pathlib import Path

from safetensors import safe_open


def config(path: Path) -> dict:
    """The model, the batches and AdamW's numbers."""
    with safe_open(path, "np") as file:
        return json.loads(file.metadata()["config"])


def losses(path: Path) -> list[float]:
    """What cllm got in fp32 after each step."""
    with safe_open(path, "np") as file:
        return file.get_tensor("losses").tolist()
