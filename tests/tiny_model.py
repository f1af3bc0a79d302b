"""A random two-layer Llama with a real byte-level tokenizer, as a Hugging Face folder or a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from riverrun.models.config import ModelConfig
from riverrun.models.io.adapter import add_adapters, save_adapter
from riverrun.models.io.hf import write_weights
from riverrun.models.load import load_checkpoint, load_model
from riverrun.models.transformer import CausalLM

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{{ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CORPUS = [
    "How much is the book? It costs 12.50 pounds.",
    "SELECT price FROM books WHERE title = 'Salt'",
    "你好，书店。",
]


def tiny_config(**changes: object) -> ModelConfig:
    sizes: dict[str, object] = {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return ModelConfig.model_validate(sizes | changes)


def tiny_weights(config: ModelConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights by name, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    model = CausalLM(config)
    out = {}
    for name, view in model.views().items():
        scale = 0.3 if view.dim() == 2 else 0.1
        values = torch.randn(view.shape, generator=generator) * scale
        out[name] = values + 1 if view.dim() == 1 else values
    return out


def write_tokenizer(folder: Path, vocab_size: int = 320) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS * 20, trainer)
    backend.save(str(folder / "tokenizer.json"))


def write_tiny(folder: Path, *, seed: int = 0, **changes: object) -> Path:
    """A whole model folder."""
    config = tiny_config(**changes)
    write_weights(folder, config, tiny_weights(config, seed), torch.float32)
    write_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}), encoding="utf-8")
    return folder


def write_rows(path: Path, count: int) -> Path:
    """Short conversations that begin alike."""
    lines = []
    for number in range(count):
        messages = [
            {"role": "system", "content": "You are the assistant of a bookshop. Tables: books(id, title, price)."},
            {"role": "user", "content": f"How much is book {number}{' please' * (number % 3)}?"},
            {"role": "assistant", "content": f"It costs {number}.50 pounds."},
        ]
        lines.append(json.dumps({"id": f"row-{number}", "messages": messages}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().numpy()


def write_adapter(
    folder: Path, model: Path, *, rank: int = 4, targets: tuple[str, ...] = ("q_proj", "down_proj")
) -> Path:
    """An adapter of that model in PEFT's layout, strong enough to change every answer."""
    learning = load_model(load_checkpoint(model), torch.float32)
    add_adapters(learning, rank, 16.0, targets=targets, seed=rank)
    generator = torch.Generator().manual_seed(rank)
    for _, matrix in learning.linears():
        for adapter in matrix.adapters.values():
            adapter.lora_B.data.normal_(std=0.15, generator=generator)  # type: ignore[operator]
    save_adapter(learning, folder)
    return folder
