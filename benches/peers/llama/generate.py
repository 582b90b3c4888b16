"""One process of llama.cpp that continues one prompt, greedily.

    generate.py FILE.safetensors --prompt 5,3,... --new 256 --dtype bf16 --threads 2

Prints the tokens and the seconds for all but the first of them as JSON, by llama.cpp's own
clock: what Python does between two tokens is not in it.
"""

import argparse
import json
import resource
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np

import model


def speak(
    path: Path, prompt: list[int], new: int, threads: int
) -> tuple[list[int], float]:
    """The new tokens, and the seconds for those after the first."""
    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, None)
    options = llama_cpp.llama_model_default_params()
    options.use_mmap = False
    loaded = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
    if not loaded:
        raise SystemExit(f"{path}: llama.cpp does not load it")
    options = llama_cpp.llama_context_default_params()
    options.n_ctx = len(prompt) + new
    options.n_batch = len(prompt)
    options.n_threads = options.n_threads_batch = threads
    options.no_perf = False
    context = llama_cpp.llama_init_from_model(loaded, options)
    if not context:
        raise SystemExit("llama.cpp makes no context")
    vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(loaded))
    said: list[int] = []
    tokens = prompt
    while len(said) < new:
        batch = (llama_cpp.llama_token * len(tokens))(*tokens)
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(batch, len(tokens))):
            raise SystemExit("llama.cpp cannot decode")
        logits = llama_cpp.llama_get_logits_ith(context, -1)
        tokens = [int(np.ctypeslib.as_array(logits, (vocab,)).argmax())]
        said += tokens
        if len(said) == 1:
            llama_cpp.llama_perf_context_reset(context)
    times = llama_cpp.llama_perf_context(context)
    if times.n_eval != new - 1:
        raise SystemExit(f"llama.cpp has timed {times.n_eval} tokens, not {new - 1}")
    return said, times.t_eval_ms / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--prompt", type=lambda text: [int(id) for id in text.split(",")])
    parser.add_argument("--new", type=int, required=True)
    parser.add_argument("--dtype", choices=("f32", "bf16"), required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        weights = model.of_start_file(args.file, path, args.dtype)
        tokens, seconds = speak(path, args.prompt, args.new, args.threads)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"tokens": tokens, "seconds": seconds, "peak_rss": peak, "weights": weights}))


if __name__ == "__main__":
    main()
