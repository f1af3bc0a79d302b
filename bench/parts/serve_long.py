"""A prompt of 200,000 tokens on a small model: `python -m bench.parts.serve_long JOB ANSWER`.

A job is {"do": "make", "base": a model folder with tokenizer, "out", "positions"}, which writes a model with random
weights whose attention is sharp enough to tell one position from the next; or {"do": "answer", "model", "prompt",
"tokens", "top"}.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from riverrun.base.artifacts import write_json
from riverrun.base.memory import keep_freed_memory
from riverrun.base.protocols import Request
from riverrun.base.types import SamplingParams
from riverrun.serve.llm import LLM

__all__: list[str] = []

LAYERS, HIDDEN, HEADS, KV_HEADS, WIDE = 2, 128, 2, 1, 256
SHARP = 6.0
"""Queries and keys are so much larger than a new model's: attention falls on few of the 200,000 tokens."""


def make(job: dict[str, Any]) -> dict[str, Any]:
    base, out = Path(job["base"]), Path(job["out"])
    out.mkdir(parents=True, exist_ok=True)
    for file in base.iterdir():
        if file.is_file() and ("token" in file.name or file.suffix in (".jinja", ".txt")):
            shutil.copy(file, out / file.name)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    own = {"hidden_size": HIDDEN, "intermediate_size": WIDE, "num_hidden_layers": LAYERS, "head_dim": HIDDEN // HEADS,
           "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "max_position_embeddings": job["positions"],
           "tie_word_embeddings": True, "torch_dtype": "float32", "dtype": "float32"}  # fmt: skip
    config = {key: value for key, value in config.items() if not key.startswith("rope")} | own
    config["rope_theta"] = 1e7
    write_json(out / "config.json", config)
    generator = torch.Generator().manual_seed(7)

    def drawn(*shape: int, times: float = 1.0) -> torch.Tensor:
        values: torch.Tensor = torch.randn(shape, generator=generator) * (times * HIDDEN**-0.5)
        return values

    small = HIDDEN * KV_HEADS // HEADS
    tensors = {
        "model.embed_tokens.weight": drawn(config["vocab_size"], HIDDEN),
        "model.norm.weight": torch.ones(HIDDEN),
    }
    for layer in range(LAYERS):
        rows = {"self_attn.q_proj": HIDDEN, "self_attn.k_proj": small, "self_attn.v_proj": small,
                "self_attn.o_proj": HIDDEN, "mlp.gate_proj": WIDE, "mlp.up_proj": WIDE,
                "mlp.down_proj": HIDDEN}  # fmt: skip
        for name, height in rows.items():
            times = SHARP**0.5 if name.endswith(("q_proj", "k_proj")) else 1.0
            width = WIDE if name.endswith("down_proj") else HIDDEN
            tensors[f"model.layers.{layer}.{name}.weight"] = drawn(height, width, times=times)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{name}.weight"] = torch.ones(HIDDEN)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return {"vocab": config["vocab_size"]}


def answer(job: dict[str, Any]) -> dict[str, Any]:
    keep_freed_memory()
    params = SamplingParams(max_tokens=job["tokens"], logprobs=job["top"], ignore_end=True)
    context = len(job["prompt"]) + job["tokens"]
    with LLM(Path(job["model"]), dtype="float32", slots=1, context=context) as model:
        done = model.generate([Request(prompt_ids=tuple(job["prompt"]), params=params)])[0]
    tops = [{str(near.id): near.logprob for near in each.top} for each in done.logprobs]
    return {"tokens": [each.id for each in done.logprobs], "tops": tops}


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    write_json(Path(sys.argv[2]), {"make": make, "answer": answer}[given["do"]](given))
