"""Tiny random models as real files: Hugging Face folders and GGUF files, written without the code under test.

The shapes differ in what can go wrong: grouped and plain heads, tied and separate head, a head size of its own. Every
file is made once per process, in a folder that is removed at its end.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from hypothesis import settings
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

__all__ = ["CHATML", "SHAPES", "SPECIAL", "VOCABULARY", "config_json", "gguf_file", "hf_folder", "quick", "tensors"]

Array = NDArray[np.float32]

VOCABULARY = 448
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
BOS, EOS = 1, 2
SHAPES: dict[str, dict[str, Any]] = {
    "gqa": {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "mha": {"num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": False},
    "wide": {
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "tie_word_embeddings": False,
        "rope_theta": 100000.0,
        "rms_norm_eps": 1e-6,
    },
}
# The template that SmolLM2-Instruct publishes, with a shorter default system turn.
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_TEXTS = [
    "The quick brown fox jumps over the lazy dog. Which books by this author are in stock, and what do they cost?",
    "SELECT title, price FROM books WHERE year > 1999 ORDER BY price DESC LIMIT 10;",
    "def add(first, second):\n    return first + second\n\n\nprint(add(12, 30))  # 42",
    "书店里有这位作者的书吗？价格是多少？请告诉我订单的状态。谢谢！书店 作者 价格 订单",
    "user system assistant answer question order shipped returned refund policy",
]


def quick(examples: int) -> settings:
    """Deterministic property tests of that many examples."""
    return settings(derandomize=True, max_examples=examples, deadline=None, database=None)


@cache
def root() -> Path:
    path = Path(tempfile.mkdtemp(prefix="riverrun-tiny-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def config_json(shape: str) -> dict[str, Any]:
    """A `config.json` as published Llama checkpoints have it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "torch_dtype": "float32",
        **SHAPES[shape],
    }


@cache
def tensors(shape: str) -> dict[str, Array]:
    """Random weights by Hugging Face name, large enough that layers matter and greedy answers vary."""
    config, rng = config_json(shape), np.random.default_rng(len(shape))
    hidden, width, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    dim = config.get("head_dim", hidden // heads)

    def matrix(out: int, into: int, gain: float = 1.5) -> Array:
        return (rng.standard_normal((out, into)) * gain / into**0.5).astype(np.float32)

    def norm() -> Array:
        return (1 + 0.2 * rng.standard_normal(hidden)).astype(np.float32)

    out = {"model.embed_tokens.weight": matrix(VOCABULARY, hidden, 2.0), "model.norm.weight": norm()}
    if not config["tie_word_embeddings"]:
        out["lm_head.weight"] = matrix(VOCABULARY, hidden, 2.0)
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        kv = config["num_key_value_heads"] * dim
        out |= {
            f"{name}.input_layernorm.weight": norm(),
            f"{name}.self_attn.q_proj.weight": matrix(heads * dim, hidden),
            f"{name}.self_attn.k_proj.weight": matrix(kv, hidden),
            f"{name}.self_attn.v_proj.weight": matrix(kv, hidden),
            f"{name}.self_attn.o_proj.weight": matrix(hidden, heads * dim),
            f"{name}.post_attention_layernorm.weight": norm(),
            f"{name}.mlp.gate_proj.weight": matrix(width, hidden),
            f"{name}.mlp.up_proj.weight": matrix(width, hidden),
            f"{name}.mlp.down_proj.weight": matrix(hidden, width),
        }
    return out


@cache
def backend() -> Tokenizer:
    """A byte-level BPE with SmolLM2's splitting (each digit alone, then the GPT-2 pattern)."""
    made = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(_TEXTS * 3, trainer)
    assert made.get_vocab_size() == VOCABULARY
    return made


@cache
def hf_folder(shape: str) -> Path:
    folder = root() / shape
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_json(shape)))
    save_file(tensors(shape), folder / "model.safetensors", metadata={"format": "pt"})
    backend().save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHATML)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[BOS],
        "eos_token": SPECIAL[EOS],
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _gguf_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem in _GGUF_NAMES:
        return _GGUF_NAMES[stem] + ".weight"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{_GGUF_NAMES[part]}.weight"


def _interleave(rows: Array, heads: int) -> Array:
    """llama.cpp's order of query and key rows: of each head, row 2i is row i and row 2i + 1 is row i + d/2."""
    out = np.empty_like(rows)
    size = len(rows) // heads
    for head in range(heads):
        for i in range(size // 2):
            out[head * size + 2 * i] = rows[head * size + i]
            out[head * size + 2 * i + 1] = rows[head * size + i + size // 2]
    return out


def writer(path: Path, shape: str, *, skip: tuple[str, ...] = ()) -> gguf.GGUFWriter:
    """A GGUF writer with the metadata of the shape (without the keys in `skip`) and no tensors yet."""
    config, out = config_json(shape), gguf.GGUFWriter(path, "llama")
    heads = config["num_attention_heads"]
    numbers = {
        "llama.block_count": config["num_hidden_layers"],
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "tokenizer.ggml.bos_token_id": BOS,
        "tokenizer.ggml.eos_token_id": EOS,
    }
    if "head_dim" in config:
        for key in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
            numbers[f"llama.{key}"] = config["head_dim"]
    for key, number in numbers.items():
        if key not in skip:
            out.add_uint32(key, number)
    out.add_float32("llama.attention.layer_norm_rms_epsilon", config["rms_norm_eps"])
    out.add_float32("llama.rope.freq_base", config["rope_theta"])
    state = json.loads(backend().to_str())
    tokens = [backend().id_to_token(index) for index in range(VOCABULARY)]
    words: dict[str, Any] = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in state["model"]["merges"]],
        "tokenizer.ggml.token_type": [3 if token in SPECIAL else 1 for token in tokens],
    }
    for key, values in words.items():
        if key not in skip:
            out.add_array(key, values)
    for key, text in {"model": "gpt2", "pre": "smollm"}.items():
        out.add_string(f"tokenizer.ggml.{key}", text)
    out.add_string("tokenizer.chat_template", CHATML)
    return out


def finish(out: gguf.GGUFWriter) -> None:
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


@cache
def gguf_file(shape: str, kind: str = "F32") -> Path:
    """The shape's weights as GGUF; matrices have the type `kind`, norms stay in float32."""
    config, path = config_json(shape), root() / f"{shape}-{kind}.gguf"
    out, quantization = writer(path, shape), gguf.GGMLQuantizationType[kind]
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, values in tensors(shape).items():
        part = name.split(".")[-2]
        rows = _interleave(values, heads[part]) if part in heads else values
        if rows.ndim == 1:
            out.add_tensor(_gguf_name(name), rows)
        else:
            out.add_tensor(_gguf_name(name), gguf.quants.quantize(rows, quantization), raw_dtype=quantization)
    finish(out)
    return path
