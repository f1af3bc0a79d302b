"""GGUF files written here, run by llama.cpp: logits of a tiny model of every family, texts of a real one.

Rows: the largest difference of a logit, llama.cpp on our float32 file against our engine; the answers, 64 tokens each,
of both on one file of smollm2-135m-instruct. F32 and F16 must be equal. With BF16, Q8_0 and Q4_0 llama.cpp also rounds
the inputs of each matrix, so there must be equal: its answers and ours on the values in F32, its answers on our file
and on the file that its own quantiser makes. Last, opening a 7B file.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.common import PEERS, Row, home, main_of, parser, peer_python, read_options, say, table, write_report
from bench.parts.machine import machine
from riverrun.base.errors import RiverrunError
from riverrun.base.types import Message

__all__ = ["main"]

KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0")
ROUNDED = ("BF16", "Q8_0", "Q4_0")  # llama.cpp rounds what it multiplies their matrices with
TOKENS = 64
FAMILY_LIMIT, GELU_LIMIT = 1e-4, 5e-3  # llama.cpp looks GELU up in a table of fp16
QUESTIONS = (
    "What is the capital of France? Answer in one sentence.",
    "Write a short story about a river and a mountain.",
    "List five uses of a paper clip.",
    "Explain to a child why the sky is blue.",
    "Write a Python function that adds two numbers.",
    "What is 12 times 7? Explain your steps.",
    "Give me a recipe for pancakes.",
    "Summarise what a database index is for.",
)


class LlamaCpp:
    """The peer's process."""

    def __init__(self) -> None:
        log = open(home() / "gguf-llamacpp.log", "w", encoding="utf-8")  # noqa: SIM115 - as long as the process
        command = [str(peer_python("llamacpp")), str(PEERS / "llamacpp_reference.py")]
        self._process = subprocess.Popen(command, stdin=-1, stdout=-1, stderr=log, text=True)

    def ask(self, **question: Any) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RiverrunError(f"llama.cpp ended with code {self._process.wait()}: see {home() / 'gguf-llamacpp.log'}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def families(peer: LlamaCpp, folder: Path) -> list[Row]:
    """Logits of 100 random tokens, float32 files."""
    import numpy as np
    import torch

    from riverrun.models.io.gguf import GGUFFile
    from riverrun.models.io.gguf_write import write_gguf
    from riverrun.models.transformer import CausalLM
    from tests.models.family_shapes import FAMILIES, config_of, weights_of

    rows = []
    for name in FAMILIES:
        config, path = config_of(name), folder / "tiny.gguf"
        write_gguf(path, config, weights_of(config), {"tokenizer.ggml.model": "none"}, kind="F32")
        ids = [int(token) for token in np.random.default_rng(1).integers(0, config.vocab_size, 100)]
        peer.ask(gguf=str(path), ids=ids, tokens=0, logits=str(folder / "logits"))
        theirs = np.fromfile(folder / "logits", dtype=np.float32).reshape(len(ids), -1)
        opened = GGUFFile(path)
        model = CausalLM(opened.config())
        with torch.no_grad():
            model.load(((key, torch.from_numpy(values)) for key, values in opened.weights(config)), name)
            model.refresh()
            hidden = model.eval()(torch.tensor(ids), torch.arange(len(ids)), model.packed(0, [len(ids)]))
            ours = model.logits(hidden).numpy()
        limit = GELU_LIMIT if config.hidden_act != "silu" else FAMILY_LIMIT
        note = f"architecture {opened.metadata['general.architecture']}, logits spread by {float(ours.std()):.2g}"
        rows.append(Row(f"{name}: largest difference", float(np.abs(ours - theirs).max()), "", limit, note=note))
    return rows


def texts(peer: LlamaCpp, folder: Path, questions: tuple[str, ...], kinds: Sequence[str] = KINDS) -> list[Row]:
    """Answers on files of every type of the real model."""
    from riverrun.hub.catalog import get_card
    from riverrun.hub.store import Store
    from riverrun.models.io.gguf import GGUFFile
    from riverrun.models.io.gguf_write import write_gguf
    from riverrun.models.load import load_checkpoint

    source = load_checkpoint(Store().fetch(get_card("smollm2-135m-instruct")))
    assert source.gguf is not None
    words = {key: value for key, value in source.gguf.metadata.items() if key.startswith("tokenizer.ggml.")}
    prompts = [source.template.encode(source.tokenizer, [Message.of("user", text)]) for text in questions]

    def answers(path: Path) -> list[str]:
        out = []
        for ids in prompts:
            tokens = peer.ask(gguf=str(path), ids=ids, tokens=TOKENS, logits=None)["ids"]
            ends = [at for at, token in enumerate(tokens) if token in source.tokenizer.end_ids]
            out.append(source.tokenizer.decode(tokens[: ends[0]] if ends else tokens))
        return out

    rows, other = [], folder / "other.gguf"
    for kind in kinds:
        path = folder / f"{kind}.gguf"
        began = time.perf_counter()
        weights, template = source.gguf.weights(source.config), source.template.source
        write_gguf(path, source.config, weights, words, template, kind=kind, name="smollm2-135m-instruct")
        note = f"written in {time.perf_counter() - began:.1f} s, {path.stat().st_size / 1e6:.0f} MB"
        theirs, ours = answers(path), _ours(path, questions)
        rows.append(_equal(f"{kind}: answers as ours on the same file", ours, theirs, note, kind not in ROUNDED))
        if kind in ROUNDED:
            write_gguf(other, source.config, GGUFFile(path).weights(source.config), words, template, kind="F32")
            rows.append(_equal(f"{kind}: answers as ours, on its values in F32", ours, answers(other), "", True))
            code = peer.ask(gguf=str(folder / "F32.gguf"), quantize=kind, out=str(other))["code"]
            note = f"quantiser ended with {code}; {_same_bytes(path, other)}"
            rows.append(_equal(f"{kind}: answers as on llama.cpp's own file", theirs, answers(other), note, True))
    return rows


def _equal(name: str, first: Sequence[str], second: Sequence[str], note: str, judged: bool) -> Row:
    """How many texts are equal; all must be where it is judged."""
    differ = [_common(a, b) for a, b in zip(first, second, strict=True) if a != b]
    note += f"; texts part after {', '.join(map(str, differ))} characters" if differ else ""
    limit = len(first) if judged else None
    return Row(name, len(first) - len(differ), f"of {len(first)}", limit, "at least", note=note.lstrip("; "))


def _ours(path: Path, questions: tuple[str, ...]) -> list[str]:
    from riverrun.base.protocols import Request
    from riverrun.base.types import SamplingParams
    from riverrun.serve.llm import LLM

    asked = [Request((Message.of("user", text),), params=SamplingParams(max_tokens=TOKENS)) for text in questions]
    with LLM(path, dtype="float32", slots=len(questions), context=512) as model:
        return [answer.raw for answer in model.generate(asked)]


def _common(first: str, second: str) -> int:
    return next(
        (at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def _same_bytes(first: Path, second: Path) -> str:
    """How many tensors of two files have the same type and bytes."""
    from riverrun.models.io.gguf import GGUFFile

    files: list[Mapping[str, tuple[str, bytes]]] = []
    for path in (first, second):
        opened = GGUFFile(path)
        files.append({name: (info.kind.name, bytes(opened.raw(name))) for name, info in opened.tensors.items()})
    same = sum(files[0][name] == files[1].get(name) for name in files[0])
    return f"{same} of {len(files[0])} tensors are the same to the byte"


def opening(folder: Path) -> list[Row]:
    """A file of InternLM2-7B's shape whose data is a hole, and its vocabulary."""
    from riverrun.models.config import ModelConfig
    from riverrun.models.io.gguf import GGUFFile
    from riverrun.models.io.gguf_write import plan_gguf

    values = {"model_type": "internlm2", "vocab_size": 92544, "hidden_size": 4096, "intermediate_size": 14336}
    values |= {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
    config = ModelConfig.of(values, "internlm2-7b")
    tokens = {"tokenizer.ggml.tokens": [f"token {index}" for index in range(config.vocab_size)]}
    plan = plan_gguf(config, tokens | {"tokenizer.ggml.scores": [0.0] * config.vocab_size}, kind="BF16")
    path = folder / "7b.gguf"
    with open(path, "wb") as handle:
        handle.write(plan.head)
        handle.truncate(plan.nbytes)
    began = time.perf_counter()
    GGUFFile(path).config()
    taken = time.perf_counter() - began
    path.unlink()
    return [Row("opening InternLM2-7B, BF16", taken, "s", 1.0, note=f"{plan.nbytes / 1e9:.1f} GB, sparse")]


def main() -> int:
    options = parser((__doc__ or "").split("\n\n")[0])
    chosen = read_options(options.parse_args(), ("llamacpp",))
    folder = home() / "gguf"
    folder.mkdir(parents=True, exist_ok=True)
    rows = opening(folder)
    if chosen.peers:
        peer = LlamaCpp()
        rows += families(peer, folder)
        rows += texts(peer, folder, QUESTIONS[:2] if chosen.quick else QUESTIONS)
    else:
        say("left out with --peers none: everything that llama.cpp runs")
    measured_on = machine()
    print(table(rows))
    write_report(chosen.json, measured_on, rows)
    return 1 if any(row.passed is False for row in rows) else 0


if __name__ == "__main__":
    main_of(main)
