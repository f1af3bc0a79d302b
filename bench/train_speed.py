"""The speed of training on one machine, against its peers in their default and their best settings.

`python -m bench.train_speed [--quick] [--peers none|trl,litgpt] [--json FILE] [--only PARTS]`. A peer's best setting is
looked for first, each point once on a short budget; then its default, its best and ours take turns on the same rows.
`--quick` tries a handful of settings and takes one turn; its ratios are shown and not judged.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bench.common import (
    PEERS,
    Options,
    Row,
    child,
    home,
    interleave,
    main_of,
    middle,
    parser,
    peer_python,
    read_options,
    say,
    table,
    write_report,
)
from bench.parts import material, peer_settings
from bench.parts.contest import Answer, Search, Setting, fair_problems, rates_of, ratio, search, turns
from bench.parts.machine import machine
from riverrun.base.artifacts import write_json
from riverrun.base.errors import InputError, nearest

__all__ = ["PARTS", "Speed", "chosen_parts", "main"]

LORA = "LoRA SFT, SmolLM2-135M, real instruction rows, useful tokens/s"
FULL = "full SFT, same"
PRETRAIN = "pre-training 30-125 M at 1,024 tokens"
SHARE = "share of the bf16 GEMM rate measured at the model's own shapes, full SFT"
START = "start to first step"
LOSS = "loss against transformers + torch AdamW, 100 steps, same batches, fp32"
PARTS = ("lora", "full", "pretrain", "start", "loss")
KNOWN_PEERS = ("trl", "litgpt")
OURS, PLAIN = "riverrun", "riverrun, nothing shared"
TRL, LITGPT, TRAINER = "TRL default", "litgpt default", "Trainer default"

Contest = Callable[[], Answer]


@dataclass(frozen=True)
class Budget:
    """Tokens of a turn and of a try, sequences of pre-training, rounds, and seconds that a try may take in all."""

    tokens: int = 10_000
    try_tokens: int = 4_000
    sequences: Mapping[str, int] = field(default_factory=lambda: {"30M": 48, "125M": 16})
    rounds: int = 3
    try_seconds: int = 60
    give_up: int = 300
    steps: int = 100
    starts: int = 3


FULL_BUDGET = Budget()
QUICK_BUDGET = Budget(3_000, 1_500, {"30M": 8}, 1, 20, 60, 20, 1)
COMMON: dict[str, Any] = {"rank": 16, "alpha": 32.0, "clip_norm": 1.0, "seed": 0, "first_rows": 8}
RATES = {"lora": 2e-4, "full": 2e-5, "pretrain": 3e-4}
GLOBAL_ROWS = 8
"""Sequences of a step in pre-training, the same on every side."""
MICRO_TOKENS = 2048


@dataclass
class Speed:
    """The parts that were asked for."""

    options: Options
    budget: Budget
    searches: dict[str, Search] = field(default_factory=dict)
    failed: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def compiled(self) -> bool:
        """Whether compiled settings are looked at: they may take minutes each before their first step."""
        return bool(self.options.rest.search != "eager")

    @property
    def judged(self) -> bool | None:
        return None if self.options.quick else True

    def job(self, method: str, rows: Path, model: Path, **more: Any) -> dict[str, Any]:
        found = COMMON | {"method": method, "model": str(model), "subset": str(rows), "learning_rate": RATES[method]}
        return found | more

    def ours(
        self, job: Mapping[str, Any], *, share: bool = True, products: bool = False, global_tokens: int = MICRO_TOKENS
    ) -> Answer:
        own = {"task": "train", "micro_tokens": MICRO_TOKENS, "global_tokens": global_tokens}
        own |= {"share": share, "products": products}
        return child(sys.executable, ["-m", "bench.parts.train_rows"], {**job, **own}, "train_ours")

    def peer(self, venv: str, script: str, job: Mapping[str, Any], setting: Setting) -> Answer:
        whole = {**job, "setting": dict(setting)}
        return child(peer_python(venv), [PEERS / f"{script}.py"], whole, f"train_{script}")

    def tries(self) -> dict[str, Any]:
        """What a try adds to a job."""
        return {"limit": self.budget.try_seconds, "give_up": self.budget.give_up}

    def _search(self, name: str, lines: peer_settings.Lines, contest: Callable[[Setting], Answer]) -> Search:
        """The best of these settings: looked for now, or with `--search stored` as it was found before."""
        file = home() / "searches" / f"{name.replace(': ', '-').replace(' ', '-')}.json"
        if self.options.rest.search == "stored" and file.is_file():
            found = Search(**json.loads(file.read_text(encoding="utf-8")))
            say(f"  {name}: {found.best} as found before")
        else:
            found = search(lines, contest)
            if not self.options.quick:
                write_json(file, asdict(found))
        self.searches[name] = found
        return found

    # --- supervised fine-tuning

    def lora(self) -> list[Row]:
        return self._tuning("lora", LORA, {TRL: 3.5, "TRL": 2.2, "litgpt": 3.0})

    def full(self) -> list[Row]:
        return self._tuning("full", FULL, {TRL: 2.5, "TRL": 1.4})

    def _tuning(self, method: str, name: str, limits: Mapping[str, float]) -> list[Row]:
        if material.shared(*material.INSTRUCTIONS) is None:
            return [Row(name, None, note=material.absent(*material.INSTRUCTIONS))]
        model = material.base_folder()
        rows, _, counts = material.instruction_rows(self.budget.tokens, "rows")
        few, _, _ = material.instruction_rows(self.budget.try_tokens, "rows-try")
        say(f"  {counts['rows']} rows, {counts['row_tokens']} tokens, {counts['label_tokens']} to learn")
        job, short = self.job(method, rows, model), self.job(method, few, model, **self.tries())
        everyone: dict[str, Contest] = {
            OURS: partial(self.ours, job),
            PLAIN: partial(self.ours, job, share=False, products=True),
        }
        if "trl" in self.options.peers:
            everyone |= self._trl(method, job, short)
        if "litgpt" in self.options.peers and "litgpt" in limits:
            everyone |= self._litgpt(job, short)
        results = self._turns(name, everyone)
        found = self._rows(name, results, limits)
        return found + (self._flop_limit(results) if method == "lora" else self._share(results))

    def _trl(self, method: str, job: Mapping[str, Any], short: Mapping[str, Any]) -> dict[str, Contest]:
        lines = peer_settings.trl_lines(compiled=self.compiled)
        if self.options.quick:
            lines = peer_settings.quick(lines, "TRL padded eager, batch 8", "TRL grouped eager, batch 4")
        contest = partial(self.peer, "trl", "trl_train")
        found = self._search(f"{method}: TRL", lines, partial(contest, short))
        best = found.settings[found.best]
        return {TRL: partial(contest, job, peer_settings.TRL_DEFAULT), found.best: partial(contest, job, best)}

    def _litgpt(self, job: Mapping[str, Any], short: Mapping[str, Any]) -> dict[str, Contest]:
        lines = peer_settings.litgpt_lines()
        if self.options.quick:
            lines = peer_settings.quick(lines, "litgpt bf16-true, micro-batch 4")
        more = {"converted": str(home() / "models" / "litgpt-smollm2"), "untimed": 0}
        contest = partial(self.peer, "litgpt", "litgpt_train")
        found = self._search("lora: litgpt", lines, partial(contest, {**short, **more}))
        best = found.settings[found.best]
        full = {**job, **more}
        return {LITGPT: partial(contest, full, peer_settings.LITGPT_DEFAULT), found.best: partial(contest, full, best)}

    # --- pre-training

    def pretrain(self) -> list[Row]:
        if material.shared(*material.TEXT) is None:
            return [Row(PRETRAIN, None, note=material.absent(*material.TEXT))]
        return [row for shape in self.budget.sequences for row in self._pretrain(shape)]

    def _pretrain(self, shape: str) -> list[Row]:
        model, name = material.shape_folder(shape), f"{PRETRAIN}, {shape}, tokens/s"
        rows, _ = material.text_rows(self.budget.sequences[shape], f"text-{shape}")
        few, _ = material.text_rows(GLOBAL_ROWS, "text-try")
        more = {"global_rows": GLOBAL_ROWS, "share": False, "first_rows": 1}
        job = self.job("pretrain", rows, model, **more)
        short = self.job("pretrain", few, model, **more, **self.tries())
        own = partial(self.ours, job, share=False, global_tokens=GLOBAL_ROWS * material.LONGEST)
        everyone: dict[str, Contest] = {OURS: own}
        if "trl" in self.options.peers:
            everyone |= self._trainer(shape, job, short)
        if "litgpt" in self.options.peers:
            everyone |= self._litgpt_pretrain(shape, job, short)
        results = self._turns(name, everyone)
        return self._rows(name, results, {"Trainer": 1.5, "litgpt": 1.3}, labels=False)

    def _trainer(self, shape: str, job: Mapping[str, Any], short: Mapping[str, Any]) -> dict[str, Contest]:
        lines = peer_settings.hf_lines(compiled=self.compiled)
        if self.options.quick:
            lines = peer_settings.quick(lines, "Trainer bf16 eager, batch 2", "Trainer mixed eager, batch 4")
        contest = partial(self.peer, "trl", "hf_train")
        found = self._search(f"pretrain {shape}: Trainer", lines, partial(contest, short))
        best = found.settings[found.best]
        return {TRAINER: partial(contest, job, peer_settings.HF_DEFAULT), found.best: partial(contest, job, best)}

    def _litgpt_pretrain(self, shape: str, job: Mapping[str, Any], short: Mapping[str, Any]) -> dict[str, Contest]:
        lines = peer_settings.litgpt_pretrain_lines()
        if self.options.quick:
            lines = peer_settings.quick(lines, "litgpt bf16-true eager, micro-batch 4")
        more = {"shape": material.litgpt_shape(shape), "untimed": 2}
        contest = partial(self.peer, "litgpt", "litgpt_train")
        found = self._search(f"pretrain {shape}: litgpt", lines, partial(contest, {**short, **more}))
        best, full = found.settings[found.best], {**job, **more}
        out: dict[str, Contest] = {found.best: partial(contest, full, best)}
        if not self.options.quick:
            out[LITGPT] = partial(contest, full, peer_settings.LITGPT_PRETRAIN_DEFAULT)
        return out

    # --- rows

    def _turns(self, name: str, everyone: Mapping[str, Contest]) -> dict[str, list[Answer]]:
        results, self.failed[name] = turns(everyone, self.budget.rounds, OURS)
        return results

    def _rows(
        self, name: str, results: Mapping[str, Sequence[Answer]], limits: Mapping[str, float], *, labels: bool = True
    ) -> list[Row]:
        """Ours beside everybody, and the ratios that the issue asks for."""
        rates = {who: middle(values) for who, values in rates_of(results).items()}
        problems = fair_problems(results, OURS, labels=labels)
        own = rates.pop(OURS)
        note = "; ".join(problems) or "same tokens and the same loss before training on all sides"
        if not self.options.peers:
            note = "--peers none: not compared"
        note += "".join(f"; {who} failed: {why}" for who, why in self.failed.get(name, {}).items())
        rows = [Row(name, own, "tokens/s", peers=rates, note=note, runs=rates_of(results))]
        for who, limit in limits.items():
            if wanted := best_against(who, rates):
                holds = self.judged and not problems
                told = who if who == wanted else f"the best of {who}"
                setting = "" if who == wanted else wanted
                value = ratio(results, OURS, wanted)
                rows.append(Row(f"{name}: ratio to {told}", value, "x", limit, "at least", note=setting, holds=holds))
        memory = {who: max(answer["peak_bytes"] for answer in answers) / 1e9 for who, answers in results.items()}
        return [*rows, Row(f"{name}: peak memory", memory.pop(OURS), "GB", peers=memory)]

    def _flop_limit(self, results: Mapping[str, Sequence[Answer]]) -> list[Row]:
        """50 % of 4 N + 6 N_trainable + the head on label rows, at the rate of the model's own shapes."""
        answers = results[PLAIN]
        shares = [100 * answer["limit_seconds"] / answer["seconds"] for answer in answers]
        rate = middle([answer["product_rate"] / 1e9 for answer in answers])
        note = f"nothing shared; limit at {rate:.0f} bf16 GFLOP/s; attention's own products are not counted"
        return [Row(f"{LORA}: share of the FLOP limit 4N + 6 N_trainable + head on label rows", middle(shares), "%",
                    50, "at least", note=note, runs={OURS: shares}, holds=self.judged)]  # fmt: skip

    def _share(self, results: Mapping[str, Sequence[Answer]]) -> list[Row]:
        answers = results[PLAIN]
        shares = [100 * answer["product_seconds"] / answer["seconds"] for answer in answers]
        rate = middle([answer["product_rate"] / 1e9 for answer in answers])
        note = (
            f"seconds of qkv, o, gate_up, down (forward, dx, dw) and the head on label rows at their own rates "
            f"({rate:.0f} GFLOP/s together, the better of before and after) / seconds of the loop; "
            "attention's own products are not counted"
        )
        return [Row(SHARE, middle(shares), "%", 70, "at least", note=note, runs={OURS: shares}, holds=self.judged)]

    # --- start and losses

    def start(self) -> list[Row]:
        if material.shared(*material.INSTRUCTIONS) is None:
            return [Row(START, None, note=material.absent(*material.INSTRUCTIONS))]
        _, talks, counts = material.instruction_rows(10**9, "rows-all")
        job = {"model": str(material.base_folder()), "rows": str(talks), "rank": 16, "alpha": 32.0}
        ours = [sys.executable, "-m", "bench.parts.train_rows"]
        everyone: dict[str, Contest] = {OURS: partial(self._started, ours, job | {"task": "start"})}
        if "trl" in self.options.peers:
            everyone["TRL"] = partial(self._started, [peer_python("trl"), PEERS / "trl_start.py"], job)
        results = interleave(everyone, self.budget.starts + 1)  # the first warms the files of both
        seconds = {who: [answer["seconds"] for answer in answers[1:]] for who, answers in results.items()}
        own = middle(seconds[OURS])
        peers = {who: middle(values) for who, values in seconds.items() if who != OURS}
        limit = 0.5 * peers["TRL"] if peers else None
        note = f"{counts['rows']} conversations tokenised, LoRA r16, one step; files in the cache on both sides"
        return [Row(START, own, "s", limit, "at most", peers, note, seconds, holds=self.judged)]

    def _started(self, command: Sequence[str | Path], job: Mapping[str, Any]) -> Answer:
        python, *program = command
        return child(str(python), program, {**job, "began": time.monotonic()}, "start")

    def loss(self) -> list[Row]:
        if material.shared(*material.INSTRUCTIONS) is None or "trl" not in self.options.peers:
            why = material.absent(*material.INSTRUCTIONS) if "trl" in self.options.peers else "--peers: needs trl"
            return [Row(LOSS, None, note=why)]
        steps = self.budget.steps
        rows, counts = material.short_rows(steps, "rows-short")
        job = self.job("full", rows, material.base_folder(), rows_per_step=1, betas=[0.9, 0.99], schedule="constant")
        ours = child(sys.executable, ["-m", "bench.parts.train_rows"], job | {"task": "losses"}, "losses_ours")
        theirs = {
            dtype: child(peer_python("trl"), [PEERS / "hf_losses.py"], job | {"dtype": dtype}, f"losses_hf_{dtype}")
            for dtype in ("float32", "float64")
        }
        own, plain, exact = ours["losses"], theirs["float32"]["losses"], theirs["float64"]["losses"]

        def most(one: Sequence[float], other: Sequence[float]) -> float:
            return max(abs(a - b) for a, b in zip(one, other, strict=True))

        note = f"{len(own)} steps of one document, {counts['row_tokens']} tokens, all weights at {job['learning_rate']}"
        fell = f"; from {own[0]:.3f} to {own[-1]:.3f}, transformers to {plain[-1]:.3f}"
        beside = f"transformers in fp32 is {most(plain, exact):.2e} from itself in fp64"
        return [
            Row(LOSS, most(own, plain), "nats", 1e-4, note=note + fell),
            Row(f"{LOSS}: against the same in fp64", most(own, exact), "nats", 1e-4, note=beside),
        ]

    def measure(self, parts: Sequence[str]) -> list[Row]:
        rows: list[Row] = []
        for part in parts:
            say(f"--- {part}")
            rows += getattr(self, part)()
        return rows


def best_against(who: str, rates: Mapping[str, float]) -> str:
    """The contestant that a limit is about: of that very name, else the fastest whose name begins so; "" if none."""
    if who in rates:
        return who
    named = [name for name in rates if name.startswith(who)]
    return max(named, key=rates.__getitem__) if named else ""


def chosen_parts(only: str) -> tuple[str, ...]:
    """The parts by name; InputError names an unknown one."""
    for name in only.split(",") if only else ():
        if name not in PARTS:
            raise InputError(f"--only {only}: no part is named '{name}'.{nearest(name, PARTS)}")
    return tuple(only.split(",")) if only else PARTS


def main() -> int:
    options = parser((__doc__ or "").split("\n\n")[0])
    told = "look for the peers' best settings, among those that compile nothing alone, or take those found before"
    options.add_argument("--search", default="new", choices=("new", "eager", "stored"), help=told)
    options.add_argument("--only", default="", help=f"parts with commas between: {', '.join(PARTS)}")
    chosen = read_options(options.parse_args(), KNOWN_PEERS)
    parts = chosen_parts(chosen.rest.only)
    speed = Speed(chosen, QUICK_BUDGET if chosen.quick else FULL_BUDGET)
    before = machine()
    rows = speed.measure(parts)
    after = machine()
    rates = f"{before['gemm_bf16_gflops']:.0f} bf16 GFLOP/s before, {after['gemm_bf16_gflops']:.0f} after"
    print(f"{before['cores']} cores ({before['cpu']}), {rates}, torch {before['torch']}\n")
    print(table(rows))
    found = {name: asdict(each) for name, each in speed.searches.items()}
    write_report(chosen.json, before | {"at_the_end": after}, rows, searches=found)
    return 1 if any(row.passed is False for row in rows) else 0


if __name__ == "__main__":
    main_of(main)
