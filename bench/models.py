"""Models and formats against their references: families, formats, adapters, templates, the first token, the hub.

`python -m bench.models [--quick] [--peers none] [--json FILE]`. transformers, peft and gguf are of the dev extra;
the peer `llamacpp` is built once (five minutes or more) and left out with --peers none.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from bench.common import ROOT, Row, home, main_of, parser, read_options, say, table, write_report
from bench.parts.machine import machine

__all__ = ["main"]

LOGITS = "logits against transformers, fp32, tiny random checkpoint of every family"
GREEDY = "greedy 64 tokens as transformers'"
GRADIENTS = "gradients of the loss, every parameter, every family"
BLOCKS = "GGUF types dequantised against the gguf package"
WORDS = "AWQ / GPTQ vectors"
ADAPTERS = "PEFT loads our adapter and we load PEFT's: logits"
FIRST = "open + first token, SmolLM2-135M from safetensors"
OPEN = "a 7B bf16 checkpoint opens, weights mapped"


def family_rows(folder: Path) -> list[Row]:
    """The largest differences over all cases of tests/models/families.py."""
    import torch

    from bench.parts.family_parity import Parity, measure

    CASES = import_module("tests.models.families").CASES

    torch.set_num_threads(2)
    found: dict[str, Parity] = {}
    for case in CASES:
        say(f"  {case}")
        found[case] = measure(case, folder / case)

    def worst(key: str) -> tuple[float, str]:
        values = {case: value for case, each in found.items() if (value := getattr(each, key)) is not None}
        case = max(values, key=values.__getitem__)
        return values[case], f"{len(values)} shapes of {len({c.split('-')[0] for c in values})} families; most: {case}"

    logits, gradients, peft = worst("logits"), worst("gradients"), worst("peft")
    greedy = [case for case, each in found.items() if each.greedy]
    asked = [case for case, each in found.items() if each.greedy is not None]
    return [
        Row(LOGITS, logits[0], "", 1e-4, note=logits[1]),
        Row(GREEDY, len(greedy), f"of {len(asked)}", len(asked), "at least"),
        Row(GRADIENTS, gradients[0], "relative", 1e-4, note=gradients[1]),
        Row(ADAPTERS, peft[0], "", 1e-5, note=peft[1]),
    ]


def format_rows() -> list[Row]:
    import gguf
    import numpy as np

    from riverrun.models.quantized import BLOCK_TYPES, awq_words, dequantize_blocks, gptq_words

    rng, wrong = np.random.default_rng(1), []
    for kind in BLOCK_TYPES.values():
        raw = rng.integers(0, 256, 4096 * kind.block_bytes, dtype=np.uint8)
        ours = dequantize_blocks(kind, raw, (4096 * kind.block_values,))
        theirs = gguf.dequantize(raw.reshape(1, -1), gguf.GGMLQuantizationType[kind.name]).reshape(-1)
        if not np.array_equal(ours.view(np.uint32), theirs.astype(np.float32).view(np.uint32)):
            wrong.append(kind.name)
    names = ", ".join(kind.name for kind in BLOCK_TYPES.values())
    rows = [Row(BLOCKS, len(BLOCK_TYPES) - len(wrong), f"of {len(BLOCK_TYPES)} types equal to the bit",
                len(BLOCK_TYPES), "at least", note=names if not wrong else f"differ: {', '.join(wrong)}")]  # fmt: skip
    return [*rows, _vectors(awq_words, gptq_words)]


def _vectors(awq_words: Any, gptq_words: Any) -> Row:
    """serve.md 5.2 and 5.3: codes 0..7 in columns 0..7 are 0x75316420 in AWQ; in rows 0..7, 0x76543210 in GPTQ."""
    import numpy as np

    from riverrun.models.quantized import GroupQuantized

    codes = np.tile(np.arange(8, dtype=np.uint8)[:, None], (1, 8))  # [out, in]: code = output row
    packed = (codes[:, 0::2] | (codes[:, 1::2] << 4)).astype(np.uint8)
    ones = np.ones((8, 1), dtype=np.float16)
    matrix = GroupQuantized(packed, ones, np.zeros((8, 1), dtype=np.uint8), 8)
    awq = int(awq_words(matrix).qweight.view(np.uint32)[0, 0])
    across = codes.T
    packed = (across[:, 0::2] | (across[:, 1::2] << 4)).astype(np.uint8)  # code = input column
    matrix = GroupQuantized(np.ascontiguousarray(packed), ones, np.zeros((8, 1), dtype=np.uint8), 8)
    gptq = int(gptq_words(matrix).qweight.view(np.uint32)[0, 0])
    equal = (awq == 0x75316420) + (gptq == 0x76543210)
    return Row(WORDS, equal, "of 2", 2, "at least", note=f"{awq:#010x}, {gptq:#010x}")


FIRST_TOKEN = """
import sys, time
from pathlib import Path
began = time.perf_counter()
import torch
from riverrun.models.load import load_checkpoint, load_model
opened = load_checkpoint(Path(sys.argv[1]))
model = load_model(opened, torch.bfloat16, mapped=True)
ids = torch.tensor(opened.tokenizer.encode("The history of the lighthouse begins in a small harbour town, where"))
def first():
    attend = model.packed(0, [len(ids)])
    with torch.inference_mode():
        return int(model.logits(model(ids, attend.positions, attend)[-1:]).argmax())
first()
print(time.perf_counter() - began)
began = time.perf_counter()
first()
print(time.perf_counter() - began)
"""
BARE = "import time\nbegan = time.perf_counter()\nimport torch\nprint(time.perf_counter() - began)"


def first_token(folder: Path, runs: int) -> list[Row]:
    """Whole processes in turns; the bare import and one forward are of the same run."""
    import torch

    from riverrun.hub.catalog import get_card
    from riverrun.hub.store import Store
    from riverrun.models.convert import convert_to_hf
    from riverrun.models.load import load_checkpoint, load_model
    from riverrun.models.presets import load_preset

    real = folder / "real-smollm2"
    convert_to_hf(Path(Store().fetch(get_card("smollm2-135m-instruct"))), real, dtype="bfloat16")
    ours, bare, forward = [], [], []
    for turn in range(runs + 1):  # the first turn fills the page cache
        first = _floats(FIRST_TOKEN, str(real))
        alone = _floats(BARE)
        if turn:
            ours.append(first[0])
            forward.append(first[1])
            bare.append(alone[0])
    base = statistics.median(bare) + statistics.median(forward)
    ratio = statistics.median(ours) / base
    note = f"{statistics.median(ours):.2f} s; import torch {statistics.median(bare):.2f} s, one forward "
    note += f"{statistics.median(forward):.3f} s; medians of {runs}"
    rows = [Row(FIRST, ratio, "x import and forward", 1.5, note=note)]
    big = folder / "7b"
    big.mkdir()
    config = load_preset("internlm2-7b")
    (big / "config.json").write_text(json.dumps(config.to_hf() | {"model_type": "internlm2"}))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (big / name).write_bytes((real / name).read_bytes())
    from riverrun.models.io.layouts import stored_shape
    from riverrun.models.io.names import stored_names

    sparse = import_module("tests.models.test_convert").sparse

    llama = config.model_copy(update={"model_type": "llama"})
    (big / "config.json").write_text(json.dumps(llama.to_hf()))
    sparse(big / "model.safetensors", {n: stored_shape(llama, parts) for n, parts in stored_names(llama).items()})
    import time

    began = time.perf_counter()
    load_model(load_checkpoint(big), torch.bfloat16, mapped=True)
    taken = time.perf_counter() - began
    return [*rows, Row(OPEN, taken, "s", 1.0, note=f"{config.num_parameters():,} parameters, sparse file")]


def _floats(script: str, *arguments: str) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return [float(line) for line in done.stdout.split()]


def main() -> int:
    chosen = read_options(parser((__doc__ or "").split("\n\n")[0]).parse_args(), ("llamacpp",))
    from bench.soak import hub_faults, templates

    rows: list[Row] = []
    home().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home()) as name:
        folder = Path(name)
        say("--- families")
        rows += family_rows(folder)
        say("--- formats")
        rows += format_rows()
        say("--- first token")
        rows += first_token(folder, 1 if chosen.quick else 5)
        if chosen.peers:
            from bench.gguf_llamacpp import QUESTIONS, LlamaCpp, texts

            say("--- llama.cpp")
            rows += texts(LlamaCpp(), folder, QUESTIONS[:2] if chosen.quick else QUESTIONS, ("F16",))
        say("--- templates")
        rows += templates.soak(quick=chosen.quick, seed=1)
        say("--- hub")
        rows += hub_faults.rows_of(hub_faults.soak(5 if chosen.quick else 50, 1))
    before = machine()
    print(table(rows))
    write_report(chosen.json, before, rows)
    return 1 if any(row.passed is False for row in rows) else 0


if __name__ == "__main__":
    main_of(main)
