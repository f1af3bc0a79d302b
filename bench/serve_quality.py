"""Whether what is served is what the model says: greedy answers, keys and values of 8 bits, 200,000 positions.

    python -m bench.serve_quality [--quick] [--peers none|transformers] [--only greedy,kv8,long] [--json FILE]

`greedy`: prompts of real instructions in English and Chinese, answered by the torch engine in fp32 alone, with what
they share found in the cache, beside 31 others, with prompts in pieces of 32 tokens, with a cache so small that answers
are put off and begun again, and with look-up; against transformers, one at a time. `kv8`: memory of a token and
perplexity of wikitext2 with codes of 8 and 4 bits. `long`: a small random model reads 200,000 tokens and answers.
"""

from __future__ import annotations

import gzip
import json
import random
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from bench.common import PEERS, Row, child, home, main_of, parser, peer_python, read_options, say, table, write_report
from bench.parts.machine import machine
from bench.parts.material import absent, base_folder, shared
from riverrun.base.errors import InputError, nearest
from riverrun.base.progress import Progress
from riverrun.base.types import Message
from riverrun.hub.catalog import get_card
from riverrun.hub.store import Store
from riverrun.models.paged import bytes_per_token

__all__ = ["main"]

MODEL = "smollm2-135m-instruct"
PARTS = ("greedy", "kv8", "long")
DEMO = ("corpora", "sft_llamafactory_demo")
WIKITEXT = ("bench", "wikitext2", "wiki.test.raw.gz")
TOKENS, LONGEST = 16, 400
POSITIONS, ANSWER, TOP = 200_000, 16, 20
NEAR = 1e-4
"""Two logits so close to one another are equal for fp32: either token may come."""


@cache
def _model() -> Path:
    """The GGUF file of the model."""
    return Path(Store().fetch(get_card(MODEL), Progress()))


def prompts(count: int) -> list[list[int]]:
    """Token ids: half English, a quarter Chinese, and a quarter that asks about one long text."""
    from riverrun.models.load import load_checkpoint

    opened, rng = load_checkpoint(_model()), random.Random(5)
    rows = {
        name: json.loads(Path(shared(*DEMO, f"alpaca_{name}_demo.json") or "").read_text(encoding="utf-8"))
        for name in ("en", "zh")
    }
    text = max((row["output"] for row in rows["en"]), key=len)
    out: list[list[int]] = []
    while len(out) < count:
        row = rng.choice(rows["zh" if len(out) % 4 == 1 else "en"])
        asked = f"{row['instruction']}\n{row['input']}".strip()
        if len(out) % 4 == 3:
            asked = f"{text[:1200]}\n\n{asked}"
        ids = opened.tokenizer.encode(opened.template.render([Message.of("user", asked)], add_generation_prompt=True))
        if len(ids) <= LONGEST and ids not in out:
            out.append(list(ids))
    return out


def greedy(peers: Sequence[str], quick: bool) -> list[Row]:
    """Equal tokens; where they differ, the reference's two best logits must be one number for fp32."""
    from riverrun.models.load import load_checkpoint

    name = "greedy answers equal to transformers' (fp32)"
    if shared(*DEMO) is None or "transformers" not in peers:
        return [Row(name, None, "%", 100, note=absent(*DEMO) if "transformers" in peers else "no peer was asked for")]
    asked = prompts(20 if quick else 200)
    job = {"do": "greedy", "model": str(base_folder()), "prompts": asked, "tokens": TOKENS}
    found = child(sys.executable, ["-m", "bench.parts.serve_greedy"], job, "serve_greedy")
    ends = sorted(load_checkpoint(_model()).tokenizer.end_ids)
    reference = child(
        peer_python("transformers"), [PEERS / "hf_greedy.py"], {**job, "ends": ends}, "hf_greedy"
    )["answers"]  # fmt: skip
    del found["peak_bytes"]
    proofs = {
        "prefix hits": lambda way: f"{way['cached']} tokens from the cache",
        "preemption": lambda way: f"put off {way['preemptions']} times",
    }
    rows = []
    for way, each in found.items():
        compared = [compare(ours, theirs, ends) for ours, theirs in zip(each["tokens"], reference, strict=True)]
        same = sum(gap is None for gap in compared)
        apart = [gap for gap in compared if gap is not None]
        note = f"{same} of {len(compared)} equal"
        if apart:
            note += (
                f"; where they part the reference's best two logits differ by {', '.join(f'{g:.1e}' for g in apart)}"
            )
        if proof := proofs.get(way):
            note += f"; {proof(each)}"
        held = way != "preemption" or each["preemptions"] > 0
        held = held and (way != "prefix hits" or each["cached"] > sum(map(len, asked)) / 2)
        rows.append(Row(f"{name}: {way}", 100 * same / len(compared), "%", 100, "at least", note=note, holds=held))
    return rows


def compare(ours: Sequence[int], theirs: dict[str, Any], ends: Sequence[int]) -> float | None:
    """None where all tokens are equal, else how far apart the reference's best two are where the answers part.

    The token that ends an answer is no part of ours.
    """
    wanted = theirs["tokens"][:-1] if theirs["tokens"][-1] in ends else theirs["tokens"]
    if list(ours) == wanted:
        return None
    at = next((n for n, (a, b) in enumerate(zip(ours, wanted, strict=False)) if a != b), None)
    return float("inf") if at is None else float(theirs["gaps"][at])


def kv8(peers: Sequence[str], quick: bool) -> list[Row]:
    """Codes of 8 bits against the model's own 16; what 4 bits cost stands beside, and has no bar."""
    from riverrun.models.presets import load_preset

    rows = []
    for preset, limit in (("smollm2-135m", 0.54), ("llama2-7b", 0.52)):
        config = load_preset(preset)
        ratio = bytes_per_token(config, "int8", 2) / bytes_per_token(config, "model", 2)
        rows.append(Row(f"KV8 memory, head_dim {config.head_dim}", ratio, "x", limit, note=f"shapes of {preset}"))
    source = shared(*WIKITEXT)
    name = "{}: perplexity of wikitext2 over 16 bits"
    if source is None:
        return [*rows, Row(name.format("KV8"), None, "%", 0.1, note=absent(*WIKITEXT))]
    text = gzip.decompress(source.read_bytes()).decode()
    job = {"do": "perplexity", "model": str(_model()), "texts": [text[:60_000] if quick else text], "context": 2048}
    found = {
        kind: child(sys.executable, ["-m", "bench.parts.serve_greedy"], {**job, "kv": kind}, f"serve_{kind}")
        for kind in ("model", "int8", "int4")
    }
    plain = found["model"]

    def held(kind: str) -> float:
        return float(found[kind]["bytes_per_token"] / plain["bytes_per_token"])

    def change(kind: str, shown: str, limit: float | None) -> Row:
        reached = found[kind]["perplexity"]
        note = f"{plain['perplexity']:.4f} and {reached:.4f}, windows of 2,048 tokens"
        return Row(name.format(shown), 100 * (reached / plain["perplexity"] - 1), "%", limit, note=note)

    measured = "bytes of the cache's tensors, SmolLM2-135M"
    rows[0] = Row(rows[0].name, held("int8"), "x", 0.54, note=measured)
    rows += [change("int8", "KV8", 0.1), Row("KV4 memory, head_dim 64", held("int4"), "x", note=measured)]
    return [*rows, change("int4", "KV4", None)]


def long(peers: Sequence[str], quick: bool) -> list[Row]:
    """Every token of the answer, and the log-probabilities of its rivals."""
    name = f"{POSITIONS:,} positions: log-probabilities off the reference's"
    count = 20_000 if quick else POSITIONS
    folder = home() / "models" / "long"
    part = ["-m", "bench.parts.serve_long"]
    asked = {"do": "make", "base": str(base_folder()), "out": str(folder), "positions": 262_144}
    made = child(sys.executable, part, asked, "make_long")
    rng = random.Random(11)
    prompt = [rng.randrange(20, made["vocab"]) for _ in range(count)]
    job = {"model": str(folder), "prompt": prompt, "tokens": ANSWER, "top": TOP}
    ours = child(sys.executable, part, {"do": "answer", **job}, "serve_long")
    memory = Row(f"{POSITIONS:,} positions: memory", ours["peak_bytes"] / 1e9, "GB", 16, note="whole process")
    if "transformers" not in peers:
        return [Row(name, None, "", 1e-3, note="no peer was asked for"), memory]
    job = {**job, "prompts": [prompt], "ends": [], "piece": 2048, "top": 50}
    reference = child(peer_python("transformers"), [PEERS / "hf_greedy.py"], job, "hf_long")
    theirs = reference["answers"][0]
    same = ours["tokens"] == theirs["tokens"]
    apart = max(
        abs(value - other.get(key, float("-inf")))
        for own, other in zip(ours["tops"], theirs["tops"], strict=True)
        for key, value in own.items()
    )
    note = f"{ANSWER} tokens {'equal' if same else 'NOT equal'}, {TOP} likeliest of each; transformers took "
    note += f"{reference['peak_bytes'] / 1e9:.1f} GB, ours {ours['peak_bytes'] / 1e9:.1f}"
    return [Row(name, apart, "", 1e-3, note=note, holds=same), memory]


def main() -> int:
    options = parser((__doc__ or "").splitlines()[0])
    options.add_argument("--only", default="", help=f"parts: {', '.join(PARTS)}")
    given = read_options(options.parse_args(), ("transformers",))
    parts = given.rest.only.split(",") if given.rest.only else list(PARTS)
    if unknown := [part for part in parts if part not in PARTS]:
        raise InputError(f"--only {unknown[0]}: there is no such part.{nearest(unknown[0], PARTS)}")
    named: dict[str, Callable[[Sequence[str], bool], list[Row]]] = {"greedy": greedy, "kv8": kv8, "long": long}
    rows: list[Row] = []
    for part in parts:
        say(f"{part} ...")
        rows += named[part](given.peers, given.quick)
    print(table(rows))
    write_report(given.json, machine(), rows)
    return 0 if all(row.passed is not False for row in rows) else 3


if __name__ == "__main__":
    main_of(main)
