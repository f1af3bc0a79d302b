"""What a run will need: rows and tokens counted or estimated, then memory and time of each stage from `plan`.

Before the data stage the rows are estimated from the intents (no question is asked of the database); afterwards they
are counted with the model's own tokenizer and the trainer's own packing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from riverrun.chain.asked import safety_of
from riverrun.chain.improving import most_work
from riverrun.chain.machine import dtype_name
from riverrun.chain.spec import GENERATED, AppSpec, PerIntent
from riverrun.chain.stage import Context
from riverrun.data.choices import Choices, load_choices
from riverrun.data.intents import Intent, Split, load_intents
from riverrun.models.config import ModelConfig
from riverrun.plan.compute import decode_seconds, forward_flops
from riverrun.plan.flow import Plan, Work, choose
from riverrun.plan.hardware import Hardware
from riverrun.plan.memory import inference_memory, weight_bytes
from riverrun.train.config import FinetuneConfig

__all__ = [
    "Rows",
    "StageCost",
    "count_rows",
    "estimate_rows",
    "make_plan",
    "sealed_count",
    "stage_costs",
    "trainer_settings",
]

CHARACTERS_PER_TOKEN = 3.6
PREFIX_TOKENS = 220
"""System text, tables and tools of a conversation, before anything is counted."""
TURN_TOKENS = 45
"""Marks of the turns and of a tool call, and a short tool result."""
REPLAY_CHARACTERS = 1100
"""Mean length of a replayed text, which is cut at 1,500 characters."""
SYNTHESISED_QUESTION, SYNTHESISED_SQL, SYNTHESISED_REPLY = 55, 115, 90
"""Mean characters of a synthesised question, its query and its answer."""
SLOTS, SLOT_TOKENS, SCORED_ROWS = 32, 400, 128
"""Of `serve.LLM`: sequences at once, tokens each of them holds here, rows whose logits exist at once."""
ANSWER_TOKENS = 60
"""A tuned model's answer to a sealed question: a call, or a sentence."""


@dataclass(frozen=True)
class Rows:
    """The training rows of all epochs. `tokens` are those that are multiplied; `length` is a row's mean length."""

    rows: int
    tokens: int
    label_tokens: int
    length: int
    steps: int
    exact: bool


def trainer_settings(spec: AppSpec, micro_tokens: int = 0) -> FinetuneConfig:
    """The trainer's settings of a spec: its seed unless another is given, the plan's micro-batch if there is one."""
    values = spec.finetune.model_dump(exclude={"method", "start"})
    values |= {"seed": spec.finetune.seed or spec.seed, "micro_tokens": micro_tokens or spec.finetune.micro_tokens}
    return FinetuneConfig(**values)


def _per_intent(count: PerIntent, intent: Intent) -> int:
    return count.get(intent.kind, 0) if isinstance(count, Mapping) else count


def _count(count: PerIntent, intent: Intent, phrasings: int) -> int:
    """Questions an intent yields: without slots there are no more than phrasings."""
    wanted = _per_intent(count, intent)
    return 0 if not phrasings else wanted if intent.slots else min(wanted, phrasings)


def sealed_count(ctx: Context) -> int:
    """How many sealed questions the intents yield."""
    return _test_count(ctx, "sealed", ctx.spec.data.sealed_per_intent)


def _test_count(ctx: Context, split: Split, wanted: PerIntent) -> int:
    if ctx.spec.synthesis is not None:
        return ctx.spec.synthesis.count(split)
    return sum(_count(wanted, i, len(i.phrasings.of(split))) for i in load_intents(ctx.file(ctx.spec.intents)))


def _choices(ctx: Context) -> Choices | None:
    """Multiple choice that is written down; generated ones are not known before the data stage."""
    name = ctx.spec.choices
    return load_choices(ctx.file(name)) if name and name != GENERATED else None


def estimate_rows(ctx: Context) -> Rows:
    """Rows and tokens from the intents' own lengths; within about a third of the exact count."""
    spec = ctx.spec
    rows = characters = labels = 0.0
    if spec.synthesis is not None:
        rows = float(spec.synthesis.train)
        said = spec.data.answered * SYNTHESISED_REPLY
        characters = rows * (SYNTHESISED_QUESTION + SYNTHESISED_SQL + said)
        labels = rows * (SYNTHESISED_SQL + said)
    for intent in load_intents(ctx.file(spec.intents)) if spec.intents else ():
        count = _count(spec.data.train_per_intent, intent, len(intent.phrasings.train))
        asked = sum(map(len, intent.phrasings.train)) / max(1, len(intent.phrasings.train))
        answered = spec.data.answered if intent.sql else spec.data.answered_pages if intent.page else 1.0
        reply = intent.answer or intent.answer_none or (intent.answers[0] if intent.answers else "")
        shown = spec.search.characters if intent.page else 0
        said = answered * len(reply)
        called = len(intent.sql or "") or (asked if intent.page else 0)
        rows += count
        characters += count * (asked + called + said + answered * shown)
        labels += count * (called + said)
    if written := _choices(ctx):
        extra = spec.data.choice_share * len(written.train) * spec.data.choice_rotations
        rows, characters, labels = rows + extra, characters + 800 * extra, labels + 30 * extra
    if spec.safety:
        extra = len(safety_of(ctx).train) * spec.data.safety_copies
        rows, characters, labels = rows + extra, characters + 160 * extra, labels + 80 * extra
    # A replayed text has no turns and no shared beginning: all of it is learned.
    rows, characters, labels = (
        rows + spec.data.replay,
        characters + REPLAY_CHARACTERS * spec.data.replay,
        labels + REPLAY_CHARACTERS * spec.data.replay,
    )
    settings = spec.finetune
    own = characters / CHARACTERS_PER_TOKEN + rows * TURN_TOKENS
    packs = own / max(1, settings.micro_tokens - PREFIX_TOKENS)
    once = own + packs * PREFIX_TOKENS if settings.share_prefix else own + rows * PREFIX_TOKENS
    tokens = max(1, round(once * settings.epochs))
    labelled = min(tokens, round((labels / CHARACTERS_PER_TOKEN + 12 * rows) * settings.epochs))
    length = round(PREFIX_TOKENS + own / max(1.0, rows))
    steps = max(1, tokens // settings.global_tokens)
    return Rows(round(rows), tokens, labelled, length, steps, exact=False)


def count_rows(model: Path, rows: Path, spec: AppSpec) -> Rows:
    """The rows as the trainer will see them: encoded, packed, over all epochs. Reads no weights."""
    from riverrun.models.load import load_checkpoint
    from riverrun.train.finetune import encode
    from riverrun.train.sampler import PackSampler

    settings = trainer_settings(spec)
    encoded = encode(rows, load_checkpoint(model), settings)
    sampler = PackSampler(
        encoded.rows,
        micro_tokens=settings.micro_tokens,
        packs_per_step=-(-settings.global_tokens // settings.micro_tokens),
        seed=settings.seed,
        share=settings.share_prefix,
    )
    stats = sampler.stats(settings.epochs)
    length = sum(len(row.ids) for row in encoded.rows) // len(encoded.rows)
    steps = sampler.total_steps(settings.epochs)
    return Rows(len(encoded.rows), stats.computed_tokens, stats.label_tokens, length, steps, exact=True)


def make_plan(spec: AppSpec, shape: ModelConfig, hardware: Hardware, rows: Rows, score: float | None) -> Plan:
    """Price the ways of fine-tuning and choose one. CapacityError when none fits that could meet the bar.

    The trainer offers LoRA; where arithmetic alone would choose full fine-tuning, LoRA is taken and the plan says so.
    """
    settings, dtype = spec.finetune, dtype_name(spec.finetune.dtype)
    work = Work(
        tokens=rows.tokens,
        label_tokens=rows.label_tokens,
        micro_tokens=settings.micro_tokens,
        least_tokens=min(settings.micro_tokens, 512),
        length=rows.length,
        steps=rows.steps,
        rank=settings.rank,
        dtype=dtype,
        compute=dtype,
    )
    bar = spec.gates.success
    available = hardware.memory_bytes
    plan = choose(
        shape,
        hardware,
        work,
        method=settings.method,
        offered=("full", "lora"),
        available_bytes=available,
        score=score,
        bar=bar,
    )
    if plan.chosen == "full":
        why = f"{plan.why}; the trainer offers LoRA, so LoRA is taken"
        plan = Plan(plan.methods, "lora", why, plan.available_bytes)
    return plan


@dataclass(frozen=True)
class StageCost:
    """What a stage is expected to need; `what` says in a few words what it does."""

    stage: str
    memory_bytes: int
    seconds: float
    what: str


def stage_costs(ctx: Context, shape: ModelConfig, hardware: Hardware, rows: Rows, plan: Plan) -> list[StageCost]:
    """Memory and time of every stage, each from the questions it asks; stages without a model count for seconds."""
    spec, dtype = ctx.spec, dtype_name(ctx.spec.finetune.dtype)
    sealed = sealed_count(ctx)
    memory = inference_memory(
        shape, weights=dtype, cache_dtype=dtype, cache_tokens=SLOTS * SLOT_TOKENS, rows=SCORED_ROWS
    ).total
    light = 150_000_000
    decode = decode_seconds(shape, hardware, weight_bytes=weight_bytes(shape, dtype), dtype=dtype, rows=8) / 8

    def asks(questions: int, prompt: int, answer: int) -> float:
        reading = prompt * forward_flops(shape, prompt, head_share=0.01) / hardware.rate(dtype)
        return questions * (reading + answer * decode)

    tools = asks(sealed, PREFIX_TOKENS, ANSWER_TOKENS)
    untuned = asks(sealed, PREFIX_TOKENS, spec.evaluate.max_tokens)
    choices = len(written.sealed) if (written := _choices(ctx)) else 0
    choices = min(choices, spec.evaluate.choices or choices)
    prompts = len(safety_of(ctx).sealed)
    retention = asks(1, spec.evaluate.retention_characters // 4, 0) + asks(spec.evaluate.sums, 40, 12)
    reading = 2 * (asks(4 * choices, 350, 0) + retention + asks(prompts, PREFIX_TOKENS, ANSWER_TOKENS))
    training, most = plan.method(plan.chosen), spec.rounds.most if plan.chosen != "none" else 1
    how = f"{plan.chosen}, {rows.rows} rows, {rows.tokens} tokens in {rows.steps} steps"
    spent = training.seconds * most_work(most, rows.rows)
    if most > 1:
        spent += most * asks(_test_count(ctx, "dev", spec.data.dev_per_intent), PREFIX_TOKENS, ANSWER_TOKENS)
        how += f", at most {most} rounds"
    return [
        StageCost("select", memory, asks(spec.select.dev_questions, 220, 96), "licence, memory, a first score"),
        StageCost("data", light, 5.0, f"pages, database, {sealed} sealed questions"),
        StageCost("plan", light, 2.0, "memory and time of each method"),
        StageCost("finetune", max(training.memory_bytes, memory if most > 1 else 0), spent, how),
        StageCost("evaluate", memory, untuned + tools + reading, "before and after: tools, choice, retention, safety"),
        StageCost("quantize", memory, 2.2 * tools, "two four-bit forms, both scored"),
        StageCost("deploy", memory, asks(5, 60, 60), "the server, checked from outside"),
        StageCost("agent", memory, 2 * tools, "the sealed questions through HTTP and agent"),
        StageCost("report", light, 1.0, "one page"),
    ]
