"""`riverrun init`: one app.yaml for a database and a folder of pages; comments say what was found, chosen and why."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from riverrun.base.artifacts import write_text
from riverrun.base.config import build_config
from riverrun.base.errors import InputError, nearest
from riverrun.base.servers import Server, is_url
from riverrun.chain.asked import topics_of
from riverrun.chain.check import SUFFIXES, check_database, is_path
from riverrun.chain.spec import GENERATED, GENERIC, AppSpec, DatabaseSpec
from riverrun.data.journal import read_documents
from riverrun.data.names import is_personal
from riverrun.data.page_questions import gap_choices
from riverrun.data.phrasing import LANGUAGES
from riverrun.data.pipeline import clean_folder
from riverrun.data.schema import Schema, read_schema
from riverrun.data.servers import snapshot
from riverrun.data.shown import Shown, choose_shown
from riverrun.data.sources import decode
from riverrun.data.synthesis import SynthesisConfig
from riverrun.hub.catalog import load_catalog, shipped_adapter

__all__ = ["Draft", "draft_app", "system_lines", "write_draft"]

CANDIDATE = "smollm2-135m-instruct"
ROW_LIMIT = 50
SMALL = 10**9
"""Parameters of a catalogue's model, or bytes of a file, below which a model is small."""
MINUTES = 10
"""Of fine-tuning, for a model of 135 million weights."""
LAYER_FLOPS, OVERHEAD_SECONDS = 0.54e9, 1.4e-3
"""Of a trained token of that model: products in its layers and head, and all the rest (measured on two cores)."""
ROW_TOKENS = 120
"""Of a training question beside the prompt, with its share of refusals, replayed texts and padding (measured)."""
LEAST_QUESTIONS, MOST_QUESTIONS = 500, 4000
ROOM_TOKENS = 640
"""Tokens of a training row beside the system text: a question, a call, its result and an answer."""


@dataclass(frozen=True)
class Pages:
    """What became of the folder of documents."""

    folder: Path
    read: int
    kept: int
    choices: int
    why: str = ""


@dataclass(frozen=True)
class Source:
    """The database: an SQLite file to look at, its name, its keys in app.yaml, and what else there is to say."""

    path: Path
    name: str
    keys: tuple[str, ...]
    comments: tuple[str, ...] = ()
    said: tuple[str, ...] = ()


CHINESE = 0.4
"""Share of Chinese letters from which the people who ask are taken to write Chinese."""


@dataclass(frozen=True)
class Draft:
    """The text of app.yaml, and lines that say what it holds."""

    text: str
    said: tuple[str, ...]


def draft_app(
    name: str, folder: Path, database: str, documents: Path | None, *, language: str, candidates: Sequence[str]
) -> Draft:
    """The app.yaml that stands in `folder`. InputError when the database or the documents cannot be used."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
        raise InputError(f"NAME '{name}' must be lower-case letters, digits and dashes, such as music-shop")
    if language not in ("auto", *LANGUAGES):
        raise InputError(f"--language {language}: no such language.{nearest(language, ('auto', *LANGUAGES))}")
    with tempfile.TemporaryDirectory() as work:
        source = _read_source(database, folder, Path(work))
        schema = read_schema(source.path)
    shown = choose_shown(schema)
    if not shown.tables:
        raise InputError(
            f"{source.path.name} holds nothing to ask about ({'; '.join(shown.left_out[:5])}): give another database"
        )
    said = []
    if language == "auto":
        share = _chinese_share(schema.narrowed(shown.tables), documents)
        language = "zh" if share >= CHINESE else "en"
        said.append(f"language {language}: {share:.0%} of the text in pages and values is Chinese")
    pages = _read_pages(documents, language) if documents is not None else None
    text = _write(name, folder, source, schema, shown, pages, language, candidates or (CANDIDATE,))
    build_config(AppSpec, yaml.safe_load(text), origin="the drafted app.yaml")
    tables = f"{len(shown.tables)} of {len(schema.tables)} tables shown"
    links = f"{len(schema.links)} links ({sum(not link.declared for link in schema.links)} inferred)"
    said = [f"{source.name}: {tables}, {links}", *said, *source.said]
    if pages is not None:
        said.append(f"{pages.folder.name}: {pages.kept} of {pages.read} pages kept{pages.why}")
    return Draft(text, tuple(said))


def _chinese_share(schema: Schema, documents: Path | None) -> float:
    """Share of Chinese characters among the letters of the pages, and of the values where there are none.

    A Chinese character counts as two letters, for it says as much.
    """
    texts = []
    if documents is not None and documents.is_dir():
        paths = [path for path in sorted(documents.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file()]
        for path in paths[:: max(1, len(paths) // 50)]:
            with open(path, "rb") as handle:
                text = decode(handle.read(20_000))[0]
            texts.append(re.sub(r"(?is)<(script|style)\b.*?(</\1>|$)|<[^<>]*>", " ", text))
    if not texts:
        values = (c.values[:20] for table in schema.tables for c in table.columns if c.kind == "text")
        texts = [" ".join(str(value) for some in values for value in some)]
    shares = []
    for text in texts:
        chinese, letters = 2 * len(re.findall("[\u3400-\u9fff]", text)), len(re.findall("[A-Za-z]", text))
        shares += [chinese / (chinese + letters)] if chinese + letters else []
    return sum(shares) / max(1, len(shares))


def write_draft(draft: Draft, folder: Path, *, force: bool) -> Path:
    """Write app.yaml into the folder; InputError when one is there and `force` is off."""
    path = folder / "app.yaml"
    if path.exists() and not force:
        raise InputError(f"{path} is there already: give another NAME, or --force to write it anew")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: give a NAME that can be a folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, draft.text)
    return path


def _read_source(database: str, folder: Path, work: Path) -> Source:
    """The SQLite file, or a snapshot of the server in `work`; InputError for what is no database."""
    if is_url(database):
        return _read_server(database, work)
    path = Path(database)
    if path.is_dir():
        raise InputError(f"--database {path} is a folder: give the path of an SQLite file")
    if not path.is_file():
        raise InputError(f"--database {path} does not exist: give the path of an SQLite file")
    check_database(path)
    return Source(path, path.name, (f"path: {_scalar(_relative(path, folder))}",))


def _read_server(url: str, work: Path) -> Source:
    fields = DatabaseSpec.model_fields
    variable, most = fields["password_variable"].default, fields["rows_per_table"].default
    server = Server.parse(url, password=os.environ.get(variable, ""))
    done = snapshot(server, work / "snapshot.sqlite", rows_per_table=most)
    comments, said = list(done.notes), []
    if done.rights:
        why = f"{server.user} {done.rights}: sessions are opened read-only, a role that can only read is safer:"
        comments += [why, *(f"  {line}" for line in done.grants)]
        said += [why, *(f"  {line}" for line in done.grants)]
    if server.password:
        said.append(f"app.yaml holds no password: the run takes it from the environment variable {variable}")
    keys = (f"url: {_scalar(server.url)}", f"password_variable: {variable}")
    return Source(work / "snapshot.sqlite", server.database, keys, tuple(comments), tuple(said))


def _read_pages(folder: Path, language: str) -> Pages:
    """Clean the pages as the data stage will, in a folder that is thrown away."""
    if not folder.is_dir():
        raise InputError(f"--documents {folder} is not a folder: give one with {', '.join(SUFFIXES)} files")
    if not any(path.suffix.lower() in SUFFIXES for path in folder.rglob("*") if path.is_file()):
        raise InputError(f"--documents {folder} holds no page ({', '.join(SUFFIXES)}): put pages there or leave it out")
    with tempfile.TemporaryDirectory() as work:
        try:
            funnel = clean_folder(folder, Path(work))
        except InputError as error:
            reasons = re.search(r"\((.*?)\)", str(error))
            why = f"; documents are left out: every page was dropped ({reasons[1] if reasons else error})"
            return Pages(folder, sum(p.is_file() for p in folder.rglob("*")), 0, 0, why)
        kept = read_documents(Path(work) / "kept.jsonl")
    choices = gap_choices(kept, language=language, seed=7)
    return Pages(folder, funnel.documents, funnel.kept, len(choices.sealed))


def _write(
    name: str,
    folder: Path,
    database: Source,
    schema: Schema,
    shown: Shown,
    pages: Pages | None,
    language: str,
    candidates: Sequence[str],
) -> str:
    """The YAML text."""
    names = [candidate if not is_path(candidate) else _relative(Path(candidate), folder) for candidate in candidates]
    has_pages = pages is not None and pages.kept > 0
    topics = _comment(topics_of(schema.narrowed(shown.tables), language))
    lines = [
        _comment(
            f"# {name}: drafted by `riverrun init` from {database.name}"
            + (f" and {pages.folder.name}/" if pages else "")
            + "."
        ),
        f"# Run it: riverrun run {name}. Every line may be changed; docs/app-yaml.md lists all keys.",
        *_found(schema),
        f"name: {name}",
        f"language: {language}",
        "system: |",
        *(f"  {line}" for line in system_lines(name, topics, has_pages, language)),
        "  {schema}",
        f"candidates: {_flow(names)}",
        *_languages(candidates, language),
    ]
    if pages is not None and has_pages:
        lines += [
            f"# {pages.kept} of {pages.read} pages are kept; the run's data/dropped.jsonl says why others are not."
        ]
        lines += [f"documents: {{path: {_scalar(_relative(pages.folder, folder))}}}"]
        lines += ["# How page questions are answered is tried on development questions, and the best way is served."]
        lines += ["pages: {compare: true}"]
    elif pages is not None:
        lines += [f"# No documents{pages.why.removeprefix('; documents are left out')}."]
    lines += [*(f"# {_comment(line)}" for line in database.comments[:20])]
    lines += ["database:", *(f"  {key}" for key in database.keys), *_columns(schema, shown)]
    lines += [
        "  # Queries may leave out joins, which follow from the keys; values that a question names stand behind it.",
        "  complete_joins: true",
        "  mentions: true",
        f"  row_limit: {ROW_LIMIT}",
    ]
    lines += [*_questions(pages, has_pages), *_answers(candidates), *_training(shown, topics, language, candidates)]
    return "\n".join(lines) + "\n"


def _languages(candidates: Sequence[str], language: str) -> list[str]:
    """A model whose card does not list the language is refused by `select`, unless the draft says otherwise."""
    cards = load_catalog()
    known = {name: cards[name].languages for name in candidates if name in cards}
    foreign = [name for name, languages in known.items() if languages and language not in languages]
    if not foreign:
        return []
    note = f"# {', '.join(foreign)} does not list {language}; a candidate that knows it will do better."
    return [note, "select: {languages: any}"]


def _found(schema: Schema) -> list[str]:
    """Comments on tables, links and what is odd."""
    views = sum(table.view for table in schema.tables)
    empty = [table.name for table in schema.tables if not table.rows]
    inferred = [link for link in schema.links if not link.declared]
    lines = [
        f"# Found: {len(schema.tables) - views} tables, {views} views, {sum(t.rows for t in schema.tables)} rows, "
        f"{len(schema.links) - len(inferred)} declared links, {len(inferred)} inferred from names and values."
    ]
    links = [f"{link.table}.{'+'.join(link.columns)} -> {link.parent} (inferred)" for link in inferred[:20]]
    lines += [f"#   {_comment(link)}" for link in links]
    unnamed = [table.name for table in schema.tables if table.rows and not table.handle]
    days = [f"{t.name}.{c.name} ({c.moment})" for t in schema.tables for c in t.columns if c.moment]
    if days:
        lines.append(f"#   days not written year-month-day, asked for as they stand: {_comment(', '.join(days[:20]))}")
    if empty:
        lines.append(f"#   empty, only counted: {_comment(', '.join(empty[:20]))}")
    if unnamed:
        lines.append(f"#   rows without a name or key, only counted and summed: {_comment(', '.join(unnamed[:20]))}")
    return lines + [f"#   {_comment(note)}" for note in schema.notes[:10]]


def system_lines(name: str, topics: str, has_pages: bool, language: str) -> list[str]:
    if language == "zh":
        lines = [f"你是 {name} 的助手。查询数据({topics})用 query_database。"]
        return [*lines, "查询页面内容用 search_policies。"] if has_pages else lines
    lines = [f"You are the assistant of {name}. Use query_database for {topics} and other data."]
    return [*lines, "Use search_policies for what the pages say."] if has_pages else lines


def _columns(schema: Schema, shown: Shown) -> list[str]:
    """deny_columns and show, with the reasons."""
    lines = []
    if shown.denied:
        lines += ["  # They look like credentials: no query may read them.", f"  deny_columns: {_flow(shown.denied)}"]
    personal = [f"{t.name}.{c.name}" for t in schema.tables for c in t.columns if is_personal(c.name)]
    if personal:
        lines.append(f"  # Personal, and readable: {_comment(', '.join(personal[:12]))}")
        lines.append("  # Add them to deny_columns where the people who ask must not see them.")
    if shown.left_out or schema.notes:
        lines.append("  # Left out of the prompt and of the questions, still there for queries:")
        lines += [f"  #   {_comment(note)}" for note in shown.left_out]
        lines.append("  show:")
        lines += [f"    {_scalar(table)}: {_flow(columns)}" for table, columns in shown.tables.items()]
    else:
        lines.append(f"  # All tables and columns stand in the prompt (about {shown.tokens} tokens).")
    return lines


def _questions(pages: Pages | None, has_pages: bool) -> list[str]:
    lines = [
        "# No intents were written: questions with their SQL are made from the names, keys and values of the database.",
    ]
    if has_pages and pages is not None and pages.choices:
        lines += [f"# Gaps in sentences of the pages, {pages.choices} of them sealed.", f"choices: {GENERATED}"]
    elif has_pages:
        lines.append("# No choices: the pages hold too few sentences with a number that could be taken out.")
    return [
        *lines,
        "# The package's own prompts: insults, credentials, changes to the data, injected orders.",
        f"safety: {GENERIC}",
    ]


def _answers(candidates: Sequence[str]) -> list[str]:
    """How the agent ends a run, by the size of the candidates."""
    lines = ["# An answer that does not say what the query or the pages returned is replaced by it."]
    if not all(map(_is_small, candidates)):
        return [*lines, "agent: {grounded: true, seconds: 300}"]
    lines.append("# The model is small: rows are listed as they are, which is right and takes half the time.")
    return [*lines, "agent: {grounded: true, closing: rows, seconds: 300}"]


def _is_small(candidate: str) -> bool:
    """Whether a model is too small to be trusted with wording facts; a name that is unknown counts as small."""
    if is_path(candidate):
        files = (Path(candidate), *Path(candidate).rglob("*"))
        return sum(file.stat().st_size for file in files if file.is_file()) < SMALL
    from riverrun.hub.catalog import load_catalog

    card = load_catalog().get(candidate)
    return card is None or card.parameters < SMALL


def _train_count(prompt: int, pack: int) -> tuple[int, str]:
    """How many training questions MINUTES of training have time for, and a comment that says so."""
    from riverrun.chain.machine import dtype_name, measure_rate

    dtype = dtype_name("auto")
    rate = measure_rate(dtype)
    seconds = LAYER_FLOPS / rate + OVERHEAD_SECONDS
    share = max(0.2, 1 - prompt / pack)
    count = round(60 * MINUTES / seconds * share / ROW_TOKENS, -2)
    count = int(min(MOST_QUESTIONS, max(LEAST_QUESTIONS, count)))
    return count, f"# {count} training questions: about {MINUTES} minutes at {rate / 1e9:.0f} GFLOP/s in {dtype}."


def _training(shown: Shown, topics: str, language: str, candidates: Sequence[str]) -> list[str]:
    """Sizes that follow from the length of the prompt and from the machine's speed."""
    per_token = 3.2 if language == "en" else 2.2
    prompt = shown.tokens + round((len(topics) + 120) / per_token) + 100
    tokens = max(1024, -(-(prompt + ROOM_TOKENS) // 128) * 128)
    train, why = _train_count(prompt, tokens)
    config = SynthesisConfig()
    start = "start: shipped, " if any(shipped_adapter(candidate) for candidate in candidates) else ""
    rate = "7.0e-4" if start else "1.5e-3"  # what the start knows of people's words is not to be overwritten
    sizes = ", ".join(f"{key}: {tokens}" for key in ("micro_tokens", "global_tokens", "max_tokens"))
    return [
        f"# The prompt takes about {prompt} tokens; a pack holds it once, so packs are longer than it.",
        why,
        f"synthesis: {{train: {train}, dev: {config.dev}, sealed: {config.sealed}}}",
        "data: {answered: 0.04, answered_pages: 0.1, choice_share: 0.5, safety_copies: 1, replay: 24}",
        "# The model before its training answers long and mostly wrong: it is asked a third of the sealed questions.",
        "evaluate: {max_tokens: 96, base_questions: 80, retention_characters: 30000, sums: 40}",
        "# The 4-bit base with the adapter beside it computes what was trained; the merged form is not scored.",
        "quantize: {prefer: q4-base-adapter}",
        *(["# Training goes on from the package's own adapter for questions over databases."] if start else []),
        f"finetune: {{{start}learning_rate: {rate}, epochs: 1, {sizes}}}",
        "rounds: {most: 2, success: 0.60}  # trained once more, one thing changed, where development questions miss it",
        "# Bars that stop the run; a small model on unknown data is held to wider ones than a recipe that was tried.",
        "gates:",
        "  success: 0.60",
        "  retention_perplexity: 1.50",
        "  quantized_drop: 0.10",
        "  through_agent: 0.06",
        "  sums_change: -0.10",
        "  safety_worse: 8",
    ]


def _relative(path: Path, folder: Path) -> str:
    """The path as seen from the folder of app.yaml."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def _scalar(text: str) -> str:
    """One YAML value in one line."""
    return (
        yaml.safe_dump(text, allow_unicode=True, width=10**6, default_style=None).strip().removesuffix("\n...").strip()
    )


def _flow(values: Sequence[str]) -> str:
    return yaml.safe_dump(list(values), allow_unicode=True, width=10**6, default_flow_style=True).strip()


def _comment(text: str) -> str:
    """Text that cannot leave its line, without what YAML does not take."""
    return "".join(letter for letter in " ".join(text.split()) if letter.isprintable())
