"""What both sides of the training benches work on, made once: the base as a folder, rows as token ids, random shapes.

`python -m bench.parts.material JOB ANSWER` in a process of its own, since it loads torch. Rows are JSON lines
{"input_ids", "labels"}; labels are -100 where nothing is learned.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.common import child, home
from riverrun.base.artifacts import write_json, write_text
from riverrun.hub.catalog import get_card
from riverrun.hub.store import Store

__all__ = ["SHAPES", "absent", "base_folder", "instruction_rows", "litgpt_shape", "make", "shape_folder", "shared",
           "short_rows", "talk", "text_rows"]  # fmt: skip

MODEL = "smollm2-135m-instruct"
INSTRUCTIONS = ("corpora", "sft_llamafactory_demo", "alpaca_en_demo.json")
TEXT = ("corpora", "standardebooks_en", "standardebooks_en.jsonl.gz")
LONGEST = 1024
SHAPES: dict[str, dict[str, int]] = {
    "30M": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 7, "num_attention_heads": 6,
            "num_key_value_heads": 2},
    "125M": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 14, "num_attention_heads": 12,
             "num_key_value_heads": 4},
}  # fmt: skip
"""Llama's decoder with the tokenizer of SmolLM2 and a tied head."""


def shared(*parts: str) -> Path | None:
    """A file below the folder that RIVERRUN_SHARED names; None where it is absent."""
    root = os.environ.get("RIVERRUN_SHARED", "")
    path = Path(root).joinpath(*parts)
    return path if root and path.exists() else None


def absent(*parts: str) -> str:
    """What a row says in place of a figure."""
    return f"not run here: needs {'/'.join(parts)} under the folder that RIVERRUN_SHARED names"


def _made(name: str, job: dict[str, Any]) -> dict[str, Any]:
    return child(sys.executable, ["-m", "bench.parts.material"], job, name)


def base_folder() -> Path:
    """SmolLM2-135M-Instruct as a bf16 Hugging Face folder, written by the project's own converter."""
    out = home() / "models" / "smollm2-135m-instruct"
    if not (out / "made").is_file():
        _made("folder", {"make": "folder", "out": str(out)})
    return out


def shape_folder(name: str) -> Path:
    """A random model of `SHAPES` with that tokenizer, fp32."""
    out = home() / "models" / f"llama-{name}"
    if not (out / "made").is_file():
        job = {"make": "shape", "out": str(out), "shape": SHAPES[name], "tokenizer": str(base_folder())}
        _made(f"shape-{name}", job)
    return out


def instruction_rows(tokens: int, name: str) -> tuple[Path, Path, dict[str, Any]]:
    """(rows as ids and labels, the same conversations as messages, counts): at least `tokens` of them."""
    rows, talks = home() / "jobs" / f"{name}.jsonl", home() / "jobs" / f"{name}-talks.jsonl"
    job = {"make": "instructions", "model": str(base_folder()), "source": str(shared(*INSTRUCTIONS))}
    return rows, talks, _made(name, job | {"tokens": tokens, "rows": str(rows), "talks": str(talks)})


def short_rows(count: int, name: str) -> tuple[Path, dict[str, Any]]:
    """`count` rows of at most 128 tokens."""
    rows, talks = home() / "jobs" / f"{name}.jsonl", home() / "jobs" / f"{name}-talks.jsonl"
    job: dict[str, Any] = {"make": "instructions", "model": str(base_folder()), "source": str(shared(*INSTRUCTIONS))}
    job |= {"count": count, "most_tokens": 128, "rows": str(rows), "talks": str(talks)}
    return rows, _made(name, job)


def litgpt_shape(name: str) -> dict[str, Any]:
    """A model of `SHAPES` in the words of litgpt's Config."""
    shape = SHAPES[name]
    vocabulary = json.loads((base_folder() / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    return {
        "n_layer": shape["num_hidden_layers"],
        "n_embd": shape["hidden_size"],
        "n_head": shape["num_attention_heads"],
        "n_query_groups": shape["num_key_value_heads"],
        "intermediate_size": shape["intermediate_size"],
        "vocab_size": vocabulary,
        "padded_vocab_size": vocabulary,
        "rotary_percentage": 1.0,
        "parallel_residual": False,
        "bias": False,
        "norm_class_name": "RMSNorm",
        "mlp_class_name": "LLaMAMLP",
    }


def text_rows(sequences: int, name: str) -> tuple[Path, dict[str, Any]]:
    """Sequences of exactly `LONGEST` tokens of English books, every token but the first learned."""
    rows = home() / "jobs" / f"{name}.jsonl"
    job = {"make": "text", "model": str(base_folder()), "source": str(shared(*TEXT))}
    return rows, _made(name, job | {"sequences": sequences, "rows": str(rows)})


def make(job: dict[str, Any]) -> dict[str, Any]:
    """One of the above, in the process that loads torch."""
    return {"folder": _folder, "shape": _shape, "instructions": _instructions, "text": _text}[job["make"]](job)


def _folder(job: dict[str, Any]) -> dict[str, Any]:
    import shutil

    from riverrun.models.convert import convert_to_hf

    out = Path(job["out"])
    shutil.rmtree(out, ignore_errors=True)
    config = convert_to_hf(Store().fetch(get_card(MODEL)), out, dtype="bfloat16")
    write_text(out / "made", "")
    return {"parameters": config.num_parameters()}


def _shape(job: dict[str, Any]) -> dict[str, Any]:
    import shutil

    import torch

    from riverrun.models.config import ModelConfig
    from riverrun.models.io.hf import write_weights

    out, tokenizer = Path(job["out"]), Path(job["tokenizer"])
    shutil.rmtree(out, ignore_errors=True)
    vocabulary = json.loads((tokenizer / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    config = ModelConfig.of(
        job["shape"] | {"vocab_size": vocabulary, "tie_word_embeddings": True, "max_position_embeddings": LONGEST},
        "bench",
    )
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.ones(shape) if len(shape) == 1 else torch.randn(*shape, generator=generator) * 0.02
        for name, shape in config.shapes().items()
    }
    write_weights(out, config, tensors, torch.float32)
    for file in sorted(tokenizer.iterdir()):
        if file.suffix in (".json", ".jinja") and file.name not in ("config.json", "model_config.json"):
            shutil.copyfile(file, out / file.name)
    write_text(out / "made", "")
    return {"parameters": config.num_parameters()}


def _write_rows(path: Path, rows: Sequence[tuple[Sequence[int], Sequence[bool]]]) -> dict[str, int]:
    lines = []
    for ids, learned in rows:
        labels = [token if flag else -100 for token, flag in zip(ids, learned, strict=True)]
        lines.append(json.dumps({"input_ids": list(ids), "labels": [-100, *labels[1:]]}) + "\n")
    write_text(path, "".join(lines))
    return {
        "rows": len(rows),
        "row_tokens": sum(len(ids) for ids, _ in rows),
        "label_tokens": sum(sum(learned[1:]) for _, learned in rows),
        "longest": max(len(ids) for ids, _ in rows),
    }


def talk(row: dict[str, str]) -> list[dict[str, str]]:
    """An Alpaca row as messages: instruction and input in one turn, a line between them."""
    asked = "\n".join(part for part in (row["instruction"], row.get("input", "")) if part)
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": row["output"]}]


def _instructions(job: dict[str, Any]) -> dict[str, Any]:
    """Rows in a random order until there are `tokens`; `most_tokens` of a row and `count` of rows may be given."""
    from riverrun.base.types import Message
    from riverrun.data.tokens import TokenRow, encode_rows
    from riverrun.models.load import load_checkpoint
    from riverrun.wire.codec import get_codec

    source = json.loads(Path(job["source"]).read_text(encoding="utf-8"))
    random.Random(0).shuffle(source)
    talks = [talk(row) for row in source]
    opened = load_checkpoint(Path(job["model"]))
    encoded = encode_rows(
        ((str(n), [Message.from_openai(turn) for turn in each], ()) for n, each in enumerate(talks)),
        tokenizer=opened.tokenizer,
        template=opened.template,
        codec=get_codec("hermes"),
        max_tokens=job.get("most_tokens", LONGEST),
    )
    taken: list[TokenRow] = []
    seen = 0
    for row in encoded.rows:
        if seen >= job.get("tokens", seen + 1) or len(taken) == job.get("count"):
            break
        taken.append(row)
        seen += len(row.ids)
    lines = [json.dumps({"id": row.id, "messages": talks[int(row.id)]}, ensure_ascii=False) + "\n" for row in taken]
    write_text(Path(job["talks"]), "".join(lines))
    counts = _write_rows(Path(job["rows"]), [(row.ids, row.learned) for row in taken])
    return counts | {"too_long": len(encoded.dropped), "of": len(source)}


def _texts(source: Path) -> Iterator[str]:
    with gzip.open(source, "rt", encoding="utf-8") as handle:
        for line in handle:
            yield json.loads(line)["text"]


def _text(job: dict[str, Any]) -> dict[str, Any]:
    from riverrun.models.load import load_checkpoint

    tokenizer = load_checkpoint(Path(job["model"])).tokenizer
    ids: list[int] = []
    for text in _texts(Path(job["source"])):
        ids += tokenizer.encode(text)
        if len(ids) >= job["sequences"] * LONGEST:
            break
    cut = [ids[start : start + LONGEST] for start in range(0, job["sequences"] * LONGEST, LONGEST)]
    return _write_rows(Path(job["rows"]), [(row, [True] * LONGEST) for row in cut])


if __name__ == "__main__":
    write_json(Path(sys.argv[2]), make(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
