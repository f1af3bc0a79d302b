"""The adapter that ships for a small model: trained on questions over many invented databases, so that a business's own
fine-tuning starts from a model that copies names from its prompt instead of one that has never seen a table.

    python -m bench.warm_start --out FOLDER [--databases N] [--rows N] [--asked N] [--zh N] [--rate R]

Every database is built from riverrun/data/domains in a naming style of its own. Half of its questions are those that
were written for its domain (domains/asked), the others come from the same synthesis that `riverrun init` uses. No
database of a test is among them.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from riverrun.base.config import load_yaml
from riverrun.base.progress import Progress
from riverrun.base.types import Document
from riverrun.chain.asked import topics_of
from riverrun.chain.assistant import make_assistant
from riverrun.chain.drafting import system_lines
from riverrun.chain.spec import AppSpec
from riverrun.data.conversations import Question, build_conversations
from riverrun.data.domain_questions import domain_questions, load_asked
from riverrun.data.domains import build_domain, load_domains
from riverrun.data.names import say_table
from riverrun.data.replay import replay_texts
from riverrun.data.schema import Schema, make_joiner, read_schema
from riverrun.data.shown import choose_shown
from riverrun.data.synthesis import SynthesisConfig, synthesise, talk_questions

PAGES_ASKED = Path(__file__).parents[1] / "riverrun" / "data" / "domains" / "asked_pages.yaml"
LANGUAGES = ("en", "zh")
PAGES = [Document("opening-hours", "Opening hours\nWe are open from nine to five on working days.")]


def rows_of(
    name: str, language: str, domain: object, folder: Path, *, rows: int, most: int, seed: int
) -> list[dict[str, object]]:
    """Training rows over one database of the domain: `rows` made from its schema, at most `most` written ones."""
    database = folder / f"{name}-{seed}.sqlite"
    spelled = build_domain(domain, database, seed=seed)  # type: ignore[arg-type]
    schema = read_schema(database)
    shown = choose_shown(schema)
    schema = schema.narrowed(shown.tables)
    rng = random.Random(f"{name}/{seed}")
    pages = PAGES if rng.random() < 0.5 else []
    label = name.replace(" ", "-").replace("_", "-")
    if not label.isascii():
        label = f"app-{seed}"
    topics = topics_of(schema, language)
    spec = AppSpec.model_validate(
        {
            "name": label,
            "language": language,
            "system": "\n".join([*system_lines(label, topics, bool(pages), language), "{schema}"]),
            "candidates": ["smollm2-135m-instruct"],
            "database": {"path": str(database), "show": shown.tables, "complete_joins": True, "mentions": True,
                         "row_limit": 50},
            "synthesis": {},
        }
    )  # fmt: skip
    assistant = make_assistant(spec, database, pages)
    config = SynthesisConfig(train=rows, dev=0, sealed=0, held_out=0)
    made = synthesise(database, schema, config, language=language, seed=seed, row_limit=50, joins=False)
    questions = made.questions["train"]
    with closing(sqlite3.connect(database)) as connection:
        asked = domain_questions(load_asked(language).get(name, ()), spelled, connection, make_joiner(schema),
                                 language=language, seed=seed)  # fmt: skip
    questions += asked[:most]
    if pages:
        questions += page_questions(language, schema, max(4, len(questions) // 7), rng)
    questions += talk_questions(language, "train", max(1, rows // 40), name=label, topics=topics, seed=seed)
    found = build_conversations(
        questions, system=assistant.system, tools=assistant.specs, run_tool=assistant.execute,
        prepare=assistant.prepare, answered=0.06,
    )  # fmt: skip
    return [row.to_openai() | {"id": f"{label}-{seed}-{row.id}"} for row in found]


def page_questions(language: str, schema: Schema, count: int, rng: random.Random) -> list[Question]:
    """What stands on no table, over the database's own nouns and names: the answer is to look it up in the pages."""
    things = [say_table(table.name, language) for table in schema.tables if table.handle]
    values = [
        str(value)
        for table in schema.tables
        for name in table.label[:1]
        for value in table.by_name[name].values[:10]
        if isinstance(value, str)
    ]
    texts = load_yaml(PAGES_ASKED)[language]
    out = []
    for number, text in enumerate(rng.sample(texts, min(count, len(texts)))):
        if ("{thing}" in text and not things) or ("{value}" in text and not values):
            continue
        filled = text.format(thing=rng.choice(things or [""]), value=rng.choice(values or [""]))
        out.append(Question(f"page-{number:03d}", filled, "page", "page", "train", None, "opening-hours", None, ""))
    return out


def ship(adapter: Path, out: Path) -> None:
    """The adapter as it ships: bfloat16, half the size."""
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    out.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.to(torch.bfloat16) for name, tensor in load_file(adapter / "adapter_model.safetensors").items()
    }
    save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(adapter / "adapter_config.json", out / "adapter_config.json")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--databases", type=int, default=70, help="databases in English")
    parser.add_argument("--zh", type=int, default=0, help="databases that are asked in Chinese")
    parser.add_argument("--rows", type=int, default=50, help="questions of each database")
    parser.add_argument("--asked", type=int, default=50, help="written questions of each database, at most")
    parser.add_argument("--replay", type=int, default=24, help="plain texts beside them, against forgetting")
    parser.add_argument("--start", type=Path, help="an adapter to go on from")
    parser.add_argument("--only-rows", action="store_true", help="write train.jsonl and stop")
    parser.add_argument("--rate", type=float, default=2e-3)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for language, count in zip(LANGUAGES, (options.databases, options.zh), strict=True):
            domains = list(load_domains(language).items())
            for number in range(count):
                name, domain = domains[number % len(domains)]
                lines += rows_of(name, language, domain, Path(folder), rows=options.rows, most=options.asked,
                                 seed=1000 + number)  # fmt: skip
    replayed = replay_texts(options.replay, characters=1500, seed=7)
    lines += [{"id": f"replay-{name}", "text": text} for name, text in replayed]
    train = options.out / "train.jsonl"
    train.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    print(f"{len(lines)} rows of {options.databases} + {options.zh} databases")
    if options.only_rows:
        return 0
    from riverrun.hub.catalog import get_card
    from riverrun.hub.store import Store
    from riverrun.train.config import FinetuneConfig
    from riverrun.train.finetune import finetune

    progress = Progress()
    model = Path(Store().fetch(get_card("smollm2-135m-instruct"), progress))
    settings = FinetuneConfig(learning_rate=options.rate, epochs=1, micro_tokens=1024, global_tokens=1024, seed=7,
                              save_every=50)  # fmt: skip
    done = finetune(model, train, options.out, settings, work=options.out / "work", progress=progress,
                    adapter=options.start)  # fmt: skip
    ship(options.out / "adapter", options.out / "shipped")
    print(f"{done.steps} steps, loss {done.losses[0]:.3f} -> {done.losses[-1]:.3f}, {done.seconds:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
