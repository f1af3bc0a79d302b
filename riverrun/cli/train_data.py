"""`riverrun train inspect | build`: thin lines over the data room. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riverrun.base.config import build_config, load_yaml
from riverrun.base.errors import ConfigError, InputError
from riverrun.base.progress import Progress
from riverrun.cli.target import model_path
from riverrun.data.build import Counts, build, read_rows
from riverrun.data.corpus import RowSource
from riverrun.data.encoding import EncodeConfig
from riverrun.data.inspect import Packing, histogram, notes, packing, shown_tokens
from riverrun.data.order import Mixture
from riverrun.data.rows import Rows
from riverrun.data.shards import Shards, is_shards
from riverrun.data.tokens import TokenRow
from riverrun.models.load import Checkpoint, load_checkpoint

__all__ = ["build_command", "inspect_command"]

_STYLES = {(True, True): "bold green", (False, True): "green", (True, False): "cyan", (False, False): "dim"}


@dataclass(frozen=True)
class _Job:
    """What a recipe, or a file and options, ask for."""

    sources: tuple[RowSource, ...]
    model: str
    config: EncodeConfig
    micro_tokens: int
    global_tokens: int
    seed: int


def _job(target: str, model: str, options: Mapping[str, Any], micro_tokens: int, global_tokens: int) -> _Job:
    """A recipe (YAML, or a folder with recipe.yaml), or anything that rows are read from."""
    path = Path(target)
    recipe = path / "recipe.yaml" if path.is_dir() else path
    given = {key: value for key, value in options.items() if value not in ("", 0, None)}
    if recipe.suffix not in (".yaml", ".yml") or not recipe.is_file():
        names = {key: given.pop(key) for key in ("format",) if key in given}
        source = RowSource(path=target, **names)
        config = build_config(EncodeConfig, given, origin="options")
        return _Job((source,), model, config, micro_tokens or 2048, global_tokens or micro_tokens or 2048, 0)
    data = load_yaml(recipe)
    section = _mapping(data.get("data"), f"{recipe}: data")
    listed = section.get("train")
    sources = []
    for item in listed if isinstance(listed, list) else [listed]:
        fields = {"path": item} if isinstance(item, str) else _mapping(item, f"{recipe}: data.train")
        known = {key: value for key, value in fields.items() if key in RowSource.model_fields}
        near = recipe.parent / str(known.get("path", ""))
        known["path"] = str(near) if near.exists() else known.get("path", "")
        sources.append(build_config(RowSource, known, origin=str(recipe)))
    fields = {key: value for key, value in section.items() if key in EncodeConfig.model_fields}
    batch = _mapping(data.get("batch") or {}, f"{recipe}: batch")
    named = data.get("model")
    own = str(named.get("path", "") if isinstance(named, Mapping) else named or "")
    micro = micro_tokens or int(batch.get("micro_tokens") or 2048)
    given.pop("format", None)
    return _Job(
        tuple(sources),
        model or own,
        build_config(EncodeConfig, {**fields, **given}, origin=str(recipe)),
        micro,
        global_tokens or int(batch.get("global_tokens") or micro),
        int(_mapping(data.get("run") or {}, f"{recipe}: run").get("seed") or 0),
    )


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a mapping, it is {type(value).__name__}")
    return value


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
        counts = [Counts.from_json(file["counts"]) for file in shards.manifest["files"]]
        total = sum(counts, Counts())
        _print(shards, total, opened, micro_tokens or 2048, global_tokens or micro_tokens or 2048, rows, 0)
        return
    job = _job(target, model, options, micro_tokens, global_tokens)
    if not job.model:
        raise InputError(f"{target} names no model: give one with --model (its tokenizer and template are used)")
    opened = load_checkpoint(model_path(job.model))
    sets: list[Rows] = []
    total = Counts()
    for source in job.sources:
        if is_shards(Path(source.path)):
            sets.append(Shards(Path(source.path)))
            continue
        found, counted = read_rows(
            [source], opened.tokenizer, opened.template, job.config, bad_file=bad_file, bad_rows=float("inf"), most=most
        )
        sets.append(found)
        total = total + counted
    mixed = Mixture(sets, [source.weight for source in job.sources], seed=job.seed)
    _print(mixed, total, opened, job.micro_tokens, job.global_tokens, rows, job.seed)
    if bad_file is not None and total.bad:
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
    bad_rows: float,
    progress: str,
) -> None:
    """Write shards and say what went into them."""
    jobs = [_job(target, model, options, 0, 0) for target in targets]
    named = {job.model for job in jobs}
    if len(named) != 1 or "" in named:
        raise InputError("give one model with --model: its tokenizer and template are used")
    opened = load_checkpoint(model_path(named.pop()))
    sources = [source for job in jobs for source in job.sources]
    shards = build(
        sources,
        out,
        opened.tokenizer,
        opened.template,
        jobs[0].config,
        workers=workers,
        bad_rows=bad_rows,
        progress=Progress(progress),  # type: ignore[arg-type]
    )
    for file in shards.manifest["files"]:
        counts = Counts.from_json(file["counts"])
        told = f" ({counts.told()})" if counts.bad else ""
        print(
            f"{file['file']} [{file['format']}]: {counts.records} records, {counts.kept} kept, {counts.rows} rows{told}"
        )
    print(f"{out}: {len(shards)} rows, {shards.manifest['tokens']} tokens, {shards.manifest['label_tokens']} learned")
