"""Makes the folders of tests/golden/transformers: tiny models as `transformers` saves them, with what
it computes from them. README.md beside this file says how to run it.

    python3 tests/golden/make_transformers.py
"""

import json
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

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
    model = model.double().eval()
    # A document begins with the end of the one before.
    ids = [tokens.eos_token_id, *tokens(TEXT)["input_ids"]]
    losses = []
    with torch.no_grad():
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


def save(name: str, model, dtype: torch.dtype, **how) -> None:
    """Writes a folder; what is expected is of the weights as they are saved."""
    out = OUT / name
    shutil.rmtree(out, ignore_errors=True)
    tokens = tokenizer()
    model = model.to(dtype)
    model.save_pretrained(out, **how)
    tokens.save_pretrained(out)
    (out / "expected.json").write_text(
        json.dumps(expected(model, tokens, model.config.n_positions), indent=1) + "\n"
    )


def gpt2(seed: int, **options):
    """A model all of whose parameters are random, biases and norms too."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=293, n_positions=24, n_embd=24, n_layer=2, n_head=3, bos_token_id=0,
        eos_token_id=0, **options,
    )
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            shift = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
            parameter.normal_(shift, 0.2)
    return model


if __name__ == "__main__":
    save("gpt2", gpt2(1), torch.float32, max_shard_size="60KB")
    save("gpt2-untied-bf16", gpt2(2, tie_word_embeddings=False, n_inner=40), torch.bfloat16)
    for folder in sorted(OUT.iterdir()):
        print(folder.name, *sorted(path.name for path in folder.iterdir()))
