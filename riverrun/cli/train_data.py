"""`riverrun train inspect | build`: thin lines over the data room. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riverrun.base.artifacts import write_text
from riverrun.base.config import build_config
from riverrun.base.errors import ConfigError, InputError
from riverrun.base.progress import Progress
from riverrun.cli.target import model_path
from riverrun.data.build import build, counts_of
from riverrun.data.corpus import RowSource
from riverrun.data.counts import Counts
from riverrun.data.encoding import EncodeConfig
from riverrun.data.examples import Kind
from riverrun.data.inspect import Packing, histogram, notes, packing, shown_tokens
from riverrun.data.loading import load_source
from riverrun.data.order import Mixture
from riverrun.data.rows import Rows
from riverrun.data.shards import Shards, is_shards
from riverrun.data.tokens import TokenRow
from riverrun.models.load import Checkpoint, load_checkpoint
from riverrun.train.recipe import MOST, TrainConfig, load_recipe
from riverrun.train.rows import learned_from, longest_row, shard_cache

__all__ = ["build_command", "inspect_command"]

_STYLES = {(True, True): "bold green", (False, True): "green", (True, False): "cyan", (False, False): "dim"}


_KINDS: frozenset[Kind] = frozenset({"chat", "text", "preference", "kto"})


@dataclass(frozen=True)
class _Job:
    """What a recipe, or a file and options, ask for."""

    sources: tuple[RowSource, ...]
    model: str
    config: EncodeConfig
    micro_tokens: int
    global_tokens: int
    seed: int = 0
    bad_rows: float = 0.01
    recipe: TrainConfig | None = None

    def opened(self, target: str, model: str) -> Checkpoint:
        """The model whose tokenizer and template are used: the one that is named, else the recipe's."""
        if self.recipe is not None and self.recipe.model.new and not model:
            from riverrun.train.build import open_model

            return open_model(self.recipe.model)
        if not (model or self.model):
            raise InputError(f"{target} names no model: give one with --model (its tokenizer and template are used)")
        return load_checkpoint(model_path(model or self.model))

    def encoding(self, opened: Checkpoint) -> EncodeConfig:
        """How rows are encoded: as the recipe's run would, within the model's context and a pack."""
        if self.recipe is None:
            return self.config
        limit = longest_row(self.recipe, opened, self.micro_tokens)[0]
        return self.recipe.data.encoding(self.recipe.objective, limit)


def _job(target: str, options: Mapping[str, Any], micro_tokens: int, global_tokens: int) -> _Job:
    """A recipe (YAML, or a folder with recipe.yaml), or anything that rows are read from."""
    path = Path(target)
    recipe = path / "recipe.yaml" if path.is_dir() else path
    given = {key: value for key, value in options.items() if value not in ("", 0, None)}
    if recipe.suffix not in (".yaml", ".yml") or not recipe.is_file():
        names = {key: given.pop(key) for key in ("format",) if key in given}
        source = build_config(RowSource, {"path": target, **names}, origin="options")
        config = build_config(EncodeConfig, given, origin="options")
        micro = micro_tokens or MOST
        return _Job((source,), "", config, micro, global_tokens or micro)
    if "format" in given:
        raise ConfigError(f"--format has no effect on a recipe: say format beside the source in {recipe}")
    changes = [f"data.{key}={value}" for key, value in given.items()]
    changes += [f"batch.{key}={value}" for key, value in (("micro_tokens", micro_tokens),) if value]
    changes += [f"batch.{key}={value}" for key, value in (("global_tokens", global_tokens),) if value]
    own = load_recipe(recipe, tuple(changes))
    if own.objective.data == "problems":
        raise InputError(
            f"{recipe}: objective {own.objective.name} writes its own rows: see `riverrun train run --dry-run`"
        )
    return _Job(
        own.data.train,
        own.model.path,
        own.data,
        own.batch.usual_micro_tokens,
        own.batch.global_tokens,
        own.run.seed,
        own.data.bad_rows,
        own,
    )


def inspect_command(
    target: str,
    *,
    model: str,
    options: Mapping[str, Any],
    micro_tokens: int,
    global_tokens: int,
    rows: int,
    most: int,
    bad_file: Path | None,
) -> None:
    """Show tokens, masks, packs, lengths and what was set aside."""
    if is_shards(Path(target)):
        shards = Shards(Path(target))
        opened = load_checkpoint(model_path(model)) if model else None
        micro = micro_tokens or MOST
        _print(shards, counts_of(shards), opened, micro, global_tokens or micro, rows, 0)
        return
    job = _job(target, options, micro_tokens, global_tokens)
    opened = job.opened(target, model)
    kinds, wanted = learned_from(job.recipe) if job.recipe is not None else (_KINDS, "")
    loaded = [
        load_source(
            source,
            opened.tokenizer,
            opened.template,
            job.encoding(opened),
            cache=shard_cache(),
            kinds=kinds,
            wanted=wanted,
            most=most,
        )
        for source in job.sources
    ]
    total = sum((each.report.counts for each in loaded), Counts())
    lines = [line for each in loaded for line in each.report.bad_lines()]
    mixed = Mixture([each.rows for each in loaded], [source.weight for source in job.sources], seed=job.seed)
    _print(mixed, total, opened, job.micro_tokens, job.global_tokens, rows, job.seed)
    for line in lines[:5]:
        print(f"  {line['file']}, line {line['line']}: {line['reason']}, {line['detail']}")
    if bad_file is not None and lines:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_text(bad_file, text.encode("utf-8", "replace").decode("utf-8"))
        print(f"set aside: {bad_file}")


def _print(rows: Rows, total: Counts, opened: Checkpoint | None, micro: int, whole: int, count: int, seed: int) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    shown = [rows.row(index) for index in range(min(count, len(rows)))]
    if opened is not None:
        for row in shown:
            _print_row(console, row, opened)
        looked = [rows.row(index) for index in range(min(256, len(rows)))]
        for note in notes(opened.tokenizer, opened.template, looked):
            console.print(f"- {note}")
    print(
        f"records {total.records} = kept {total.kept} + too long {total.too_long} + set aside {total.quarantined}; "
        f"rows {total.rows}, tokens {total.tokens}, label tokens {total.labels} "
        f"({100 * total.labels / max(1, total.tokens):.0f} %)"
    )
    for line in filter(None, total.told().split("; ")):
        print(f"  {line}")
    _print_lengths(rows)
    _print_packs(packing(rows, micro_tokens=micro, global_tokens=whole, seed=seed), micro)


def _print_row(console: Any, row: TokenRow, opened: Checkpoint) -> None:
    from rich.text import Text

    text = Text()
    tokens = shown_tokens(row, opened.tokenizer)
    for number, token in enumerate(tokens):
        piece = token.piece.replace("\n", "⏎\n") if "\n" in token.piece else token.piece
        style = _STYLES[token.special, token.learned]
        text.append(piece or f"<{token.id}>", style=f"{style} underline" if number % 2 else style)
    learned = sum(token.learned for token in tokens)
    console.print(
        f"[bold]{row.id}[/bold]: {len(tokens)} tokens, {learned} learned (green; special tokens cyan or bold)"
    )
    console.print(text)
    if not console.is_terminal:  # without colours: what is learned, as text
        stretches = _stretches([(token.piece, token.learned) for token in tokens])
        console.print(Text("learned: " + " | ".join(stretches)))


def _stretches(tokens: Sequence[tuple[str, bool]]) -> list[str]:
    out: list[str] = []
    before = False
    for piece, learned in tokens:
        if learned:
            out = [*out[:-1], out[-1] + piece] if before else [*out, piece]
        before = learned
    return [stretch.replace("\n", "⏎") for stretch in out]


def _print_lengths(rows: Rows) -> None:
    bars = histogram(rows.lengths)
    most = max((bar.rows for bar in bars), default=1)
    print("tokens of a row:")
    for bar in bars:
        print(f"  {bar.low:>7}-{bar.high:<7} {bar.rows:>8} {'#' * -(-40 * bar.rows // most)}")


def _print_packs(found: Packing | str, micro: int) -> None:
    if isinstance(found, str):
        print(f"packs: {found}")
        return
    print(
        f"an epoch: {found.rows} rows in {found.packs} packs of at most {micro} tokens, {found.steps} steps; "
        f"{100 * found.fill:.1f} % filled (random batches of 8, padded: {100 * (1 - found.padded):.1f} %)"
    )
    for number, lengths in enumerate(found.first):
        shown = " ".join(map(str, lengths[:16])) + (" ..." if len(lengths) > 16 else "")
        print(f"  pack {number}: {sum(lengths)} tokens in {len(lengths)} rows: {shown}")


def build_command(
    targets: Sequence[str],
    out: Path,
    *,
    model: str,
    options: Mapping[str, Any],
    workers: int,
    bad_rows: float | None,
    progress: str,
) -> None:
    """Write shards and say what went into them."""
    jobs = [_job(target, options, 0, 0) for target in targets]
    opened = jobs[0].opened(targets[0], model)
    config = jobs[0].encoding(opened)
    for job, target in zip(jobs[1:], targets[1:], strict=True):
        if job.encoding(opened) != config or (not model and job.model != jobs[0].model):
            raise InputError(f"{targets[0]} and {target} ask for rows made differently: build them one by one")
    shards = build(
        [source for job in jobs for source in job.sources],
        out,
        opened.tokenizer,
        opened.template,
        config,
        workers=workers,
        bad_rows=jobs[0].bad_rows if bad_rows is None else bad_rows,
        progress=Progress(progress),  # type: ignore[arg-type]
    )
    for file in shards.manifest["files"]:
        counts = Counts.from_json(file["counts"])
        told = f" ({counts.told()})" if counts.bad else ""
        print(
            f"{file['file']} [{file['format']}]: {counts.records} records, {counts.kept} kept, {counts.rows} rows{told}"
        )
    print(f"{out}: {len(shards)} rows, {shards.manifest['tokens']} tokens, {shards.manifest['label_tokens']} learned")
