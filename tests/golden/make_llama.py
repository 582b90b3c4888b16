"""Make the golden files of the Llama family: what the model classes of
`transformers` compute for a few tiny models.

The files are those of make_golden.py, which draws the weights and batches and
takes the steps; only the logits come from elsewhere. `transformers` computes
norms, softmax and the angles of positions in float32 whatever the weights are;
here its code runs with float64 in their place.

    python tests/golden/make_llama.py [--out DIR]

README.md beside this file lists the configurations and the tensors.
"""

from dataclasses import dataclass

import torch
from make_golden import Config, folder, initial_parameters, make, make_batches, write
from torch.overrides import TorchFunctionMode
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

CLASSES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
# How far float32 inside `transformers` may move a logit. More would mean that
# the float64 in its place computes something else.
FLOAT32_REACH = 1e-5


@dataclass(frozen=True)
class Parts:
    """What blocks are made of, in the words of the project's reports."""

    norm: str = "rms"
    positions: str = "rotary"
    activation: str = "swiglu"
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None
    n_kv_head: int | None = None
    head_size: int | None = None
    qkv_bias: bool = False
    qk_norm: bool = False
    window: int | None = None


@dataclass(frozen=True)
class Family(Config):
    """A model of the Llama family."""

    d_model: int = 16
    d_ff: int = 40
    bias: bool = False
    kind: str = "llama"
    layer_norm_eps: float = 1e-5
    parts: Parts = Parts()

    @property
    def head_size(self):
        return self.parts.head_size or self.d_model // self.n_head

    @property
    def widths(self):
        """Columns of queries, keys and values."""
        keys = self.head_size * (self.parts.n_kv_head or self.n_head)
        return [self.head_size * self.n_head, keys, keys]


CONFIGS = [
    Family("llama_tied", 21),
    Family("llama_untied", 22, n_layer=1, n_head=2, d_model=24, d_ff=36, tied=False),
    Family("llama_grouped", 23, d_model=24, d_ff=32, layer_norm_eps=1e-6,
           parts=Parts(n_kv_head=2, rope_theta=500000.0)),
    # Nothing here divides by 4. Equal shares of the width would be heads of 3 columns, which are
    # no pairs.
    Family("llama_one_kv", 24, vocab_size=37, block_size=15, n_head=6, d_model=18, d_ff=25,
           tied=False, batch=3, tokens_per_sequence=13, parts=Parts(n_kv_head=1, head_size=6)),
    # Heads wider than their share of the width.
    Family("mistral", 25, kind="mistral", n_layer=1, d_model=24, d_ff=48, tied=False,
           parts=Parts(n_kv_head=2, head_size=10)),
    # The micro-batches count unequal numbers of targets.
    Family("llama_ignored", 26, accum=2, batch=3, tokens_per_sequence=9, ignored_share=0.4,
           parts=Parts(n_kv_head=2)),
    Family("qwen2", 27, kind="qwen2", d_model=24, d_ff=32, layer_norm_eps=1e-6,
           parts=Parts(n_kv_head=2, qkv_bias=True)),
    # Heads narrower than their share of the width.
    Family("llama_linear", 28, block_size=70, n_layer=1, n_head=2, d_model=24, d_ff=32,
           tokens_per_sequence=70,
           parts=Parts(head_size=8, rope_theta=100.0,
                       rope_scaling={"rope_type": "linear", "factor": 4.0})),
    # Waves of 6.3 and 11 tokens stay, those of 20 and 35 are between, and those of 63 to 353
    # are divided.
    Family("llama_scaled", 29, block_size=70, n_layer=1, n_head=2, d_model=32, d_ff=32,
           tokens_per_sequence=70,
           parts=Parts(n_kv_head=1, rope_theta=100.0,
                       rope_scaling={"rope_type": "llama3", "factor": 8.0,
                                     "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                     "original_max_position_embeddings": 48})),
    # Norms of heads that are wider than their share of the width, two of queries to one of keys.
    Family("qwen3", 30, kind="qwen3", d_model=24, d_ff=32, layer_norm_eps=1e-6,
           parts=Parts(n_kv_head=2, head_size=10, rope_theta=1000000.0, qk_norm=True)),
    # Sequences of more rows than the gradients of gains are summed over at a time, three heads of
    # queries to one of keys, and an epsilon that would be missed.
    Family("qwen3_ignored", 31, kind="qwen3", block_size=70, n_head=6, d_model=24, d_ff=32,
           layer_norm_eps=1e-3, tied=False, accum=2, tokens_per_sequence=70, ignored_share=0.4,
           parts=Parts(n_kv_head=2, head_size=8, rope_theta=1000000.0, qk_norm=True)),
    # Each token sees 21 of up to 70.
    Family("mistral_window", 32, kind="mistral", block_size=70, d_model=24, d_ff=32,
           tokens_per_sequence=70, parts=Parts(n_kv_head=2, window=21)),
    # Logits capped as Gemma 2 has them.
    Family("llama_capped", 33, vocab_size=37, d_model=24, d_ff=32, softcap=2.0,
           parts=Parts(n_kv_head=2)),
]


def parameter_table(c):
    """(name, shape) of every parameter, in the order of the project's table."""
    table = [("wte.weight", (c.vocab_size, c.d_model))]
    for i in range(c.n_layer):
        table.append((f"h.{i}.ln_1.weight", (c.d_model,)))
        table.append((f"h.{i}.attn.c_attn.weight", (c.d_model, sum(c.widths))))
        if c.parts.qkv_bias:
            table.append((f"h.{i}.attn.c_attn.bias", (sum(c.widths),)))
        if c.parts.qk_norm:
            table.append((f"h.{i}.attn.q_norm.weight", (c.head_size,)))
            table.append((f"h.{i}.attn.k_norm.weight", (c.head_size,)))
        table.append((f"h.{i}.attn.c_proj.weight", (c.widths[0], c.d_model)))
        table.append((f"h.{i}.ln_2.weight", (c.d_model,)))
        table.append((f"h.{i}.mlp.c_fc.weight", (c.d_model, 2 * c.d_ff)))
        table.append((f"h.{i}.mlp.c_proj.weight", (c.d_ff, c.d_model)))
    table.append(("ln_f.weight", (c.d_model,)))
    if not c.tied:
        table.append(("lm_head.weight", (c.vocab_size, c.d_model)))
    return table


def theirs(c, p):
    """The parameters by the names of `transformers`, which has rows of outputs
    where we have columns, and no two matrices side by side. Gradients go
    through to ours."""
    named = {"model.embed_tokens.weight": p["wte.weight"], "model.norm.weight": p["ln_f.weight"]}
    named["lm_head.weight"] = p["wte.weight"] if c.tied else p["lm_head.weight"]
    for i in range(c.n_layer):
        ours, layer = f"h.{i}", f"model.layers.{i}"

        def split(name, widths, parts):
            for what in ("weight", "bias"):
                if (values := p.get(f"{ours}.{name}.{what}")) is not None:
                    for part, columns in zip(parts, values.split(widths, dim=-1)):
                        named[f"{layer}.{part}.{what}"] = columns.T if what == "weight" else columns

        named[f"{layer}.input_layernorm.weight"] = p[f"{ours}.ln_1.weight"]
        named[f"{layer}.post_attention_layernorm.weight"] = p[f"{ours}.ln_2.weight"]
        split("attn.c_attn", c.widths, [f"self_attn.{x}_proj" for x in "qkv"])
        if c.parts.qk_norm:
            for norm in ("q_norm.weight", "k_norm.weight"):
                named[f"{layer}.self_attn.{norm}"] = p[f"{ours}.attn.{norm}"]
        split("attn.c_proj", c.d_model, ["self_attn.o_proj"])
        split("mlp.c_fc", c.d_ff, ["mlp.gate_proj", "mlp.up_proj"])
        split("mlp.c_proj", c.d_model, ["mlp.down_proj"])
    return named


class Float64(TorchFunctionMode):
    """Wherever code asks for float32, it gets float64."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        def wide(value):
            return torch.float64 if value is torch.float32 else value

        if function is torch.Tensor.float:
            function = torch.Tensor.double
        kwargs = {key: wide(value) for key, value in (kwargs or {}).items()}
        return function(*map(wide, args), **kwargs)


def network(c):
    """The model of `transformers`; the values of its parameters mean nothing."""
    config_class, model_class = CLASSES[c.kind]
    # Qwen3 has heads of 128 unless told.
    options = {"head_dim": c.head_size}
    if c.kind == "mistral":
        options["sliding_window"] = c.parts.window
    scaling = c.parts.rope_scaling or {"rope_type": "default"}
    config = config_class(
        vocab_size=c.vocab_size,
        hidden_size=c.d_model,
        intermediate_size=c.d_ff,
        num_hidden_layers=c.n_layer,
        num_attention_heads=c.n_head,
        num_key_value_heads=c.parts.n_kv_head or c.n_head,
        max_position_embeddings=c.block_size,
        rms_norm_eps=c.layer_norm_eps,
        rope_parameters={"rope_theta": c.parts.rope_theta} | scaling,
        tie_word_embeddings=c.tied,
        use_cache=False,
        attn_implementation="eager",
        **options,
    )
    return model_class(config).double().eval()


def logits_of(c, model, p, tokens):
    named = theirs(c, p)
    # No parameter may keep a value of its own.
    assert named.keys() == {name for name, _ in model.named_parameters(remove_duplicate=False)}
    logits = torch.func.functional_call(model, named, (tokens,)).logits
    assert logits.dtype == torch.float64
    return logits


def wide_forward(c):
    """A forward pass as make_golden.py wants it, in float64 throughout."""
    with Float64():
        model = network(c)
    assert model.model.rotary_emb.inv_freq.dtype == torch.float64

    def forward(c, p, tokens):
        with Float64():
            return logits_of(c, model, p, tokens)

    return forward


def check(c, forward):
    """That `transformers` left to itself computes the same, but for rounding."""
    generator = torch.Generator().manual_seed(c.seed)
    p = initial_parameters(c, parameter_table(c), generator)
    tokens = make_batches(c, generator)[0][0, 0]
    with torch.no_grad():
        wide, narrow = forward(c, p, tokens), logits_of(c, network(c), p, tokens)
    moved = (wide - narrow).abs().max().item()
    assert 0.0 < moved < FLOAT32_REACH, f"{c.name}: {moved}"
    return moved


def main():
    out = folder("Make the golden files of the Llama family.")
    for c in CONFIGS:
        forward = wide_forward(c)
        tensors, metadata = make(c, parameter_table(c), forward)
        # What is absent is false or none, and the first files do not say.
        if not c.parts.qk_norm:
            del metadata["parts"]["qk_norm"]
        if c.parts.window is None:
            del metadata["parts"]["window"]
        write(out, c, tensors, metadata | {"layer_norm_eps": c.layer_norm_eps})
        print(f"{'':28} float32 would move a logit by {check(c, forward):.1e}")


if __name__ == "__main__":
    main()
