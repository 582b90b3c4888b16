"""Makes the folders of tests/golden/transformers: tiny models as `transformers` saves them, with what
it computes from them. README.md beside this file says how to run it.

    python3 tests/golden/make_transformers.py
"""

import json
import shutil
from pathlib import Path

import torch
from make_llama import Float64
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    NanoChatConfig,
    NanoChatForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

OUT = Path(__file__).parent / "transformers"
TEXT = (
    "In the beginning God created the heaven and the earth. And the earth was without form, and "
    "void; and darkness was upon the face of the deep.\nAnd the Spirit of God moved upon the face of "
    "the waters. And God said, Let there be light: and there was light.\n"
)
PROMPT = "And God"
NEW = 12


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, of 290 ids, trained on the text."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|endoftext|>")


def expected(model, tokens: PreTrainedTokenizerFast, block: int) -> dict:
    """Mean loss of the text in sequences of `block`, and what follows the prompt, in float64."""
    model = model.eval()
    # A document begins with the end of the one before.
    ids = [tokens.eos_token_id, *tokens(TEXT)["input_ids"]]
    losses = []
    # The Llama family computes some things in float32 whatever the weights are.
    with torch.no_grad(), Float64():
        for first in range(0, (len(ids) - 1) // block * block, block):
            row = torch.tensor([ids[first : first + block]])
            wanted = torch.tensor(ids[first + 1 : first + block + 1])
            losses.append(torch.nn.functional.cross_entropy(model(row).logits[0], wanted))
        said = tokens(PROMPT)["input_ids"]
        for _ in range(NEW):
            said.append(int(model(torch.tensor([said])).logits[0, -1].argmax()))
            # The program stops there.
            assert said[-1] != tokens.eos_token_id, "choose another seed"
    return {
        "text": TEXT,
        "loss": float(torch.stack(losses).mean()),
        "prompt": PROMPT,
        "new": NEW,
        "said": tokens.decode(said),
    }


def save(name: str, model, dtype: torch.dtype, block: int = 24, **how) -> None:
    """Writes a folder; what is expected is of the weights as they are saved."""
    out = OUT / name
    shutil.rmtree(out, ignore_errors=True)
    tokens = tokenizer()
    model.to(dtype).save_pretrained(out, **how)
    # Not the one that was saved: its angles have been rounded too.
    model = type(model).from_pretrained(out, dtype=torch.float64)
    tokens.save_pretrained(out)
    (out / "expected.json").write_text(
        json.dumps(expected(model, tokens, block), indent=1) + "\n"
    )


def gpt2(seed: int, **options):
    """A model all of whose parameters are random, biases and norms too."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=293, n_positions=24, n_embd=24, n_layer=2, n_head=3, bos_token_id=0,
        eos_token_id=0, **options,
    )
    return randomized(GPT2LMHeadModel(config))


def llama(seed: int, config_class, model_class, **options):
    """The same of the Llama family."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": 293, "max_position_embeddings": 24, "hidden_size": 24,
        "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 0,
    }
    return randomized(model_class(config_class(**(sizes | options))))


def randomized(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_gain = ("ln_" in name or "norm" in name) and name.endswith("weight")
            parameter.normal_(1.0 if is_gain else 0.0, 0.2)
    return model


if __name__ == "__main__":
    save("gpt2", gpt2(1), torch.float32, max_shard_size="60KB")
    save("gpt2-untied-bf16", gpt2(2, tie_word_embeddings=False, n_inner=40), torch.bfloat16)
    tied = llama(3, LlamaConfig, LlamaForCausalLM, tie_word_embeddings=True)
    save("llama", tied, torch.float32)
    # Wider heads than their share; waves of 6.3 tokens stay, those of 13 and 29 are between, and longer
    # ones are divided.
    stretched = llama(
        4, LlamaConfig, LlamaForCausalLM, head_dim=12, rms_norm_eps=1e-5, max_position_embeddings=64,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
        },
    )
    save("llama-untied-bf16", stretched, torch.bfloat16, block=64, max_shard_size="30KB")
    biased = llama(5, LlamaConfig, LlamaForCausalLM, attention_bias=True, mlp_bias=True)
    save("llama-biases", biased, torch.float32)
    save("qwen2", llama(6, Qwen2Config, Qwen2ForCausalLM, tie_word_embeddings=True), torch.float32)
    # Heads that do not divide the width.
    normed = llama(
        8, Qwen3Config, Qwen3ForCausalLM, head_dim=10, tie_word_embeddings=True, rms_norm_eps=1e-5,
    )
    save("qwen3", normed, torch.float32)
    window = llama(7, MistralConfig, MistralForCausalLM, head_dim=8, sliding_window=16)
    save("mistral", window, torch.float32)
    save("gpt2-relu2", gpt2(9, activation_function="relu2"), torch.float32)
    # A cap where logits bend, and an epsilon that counts in the norm of the embedding.
    nanochat = llama(
        10, NanoChatConfig, NanoChatForCausalLM, final_logit_softcapping=3.0, rms_norm_eps=1e-3,
        tie_word_embeddings=False,
    )
    save("nanochat", nanochat, torch.float32)
    for folder in sorted(OUT.iterdir()):
        print(folder.name, *sorted(path.name for path in folder.iterdir()))
