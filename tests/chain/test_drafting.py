"""`riverrun init`: one file that the chain runs unedited, for tidy and untidy databases; refusals in one sentence."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from riverrun.base.errors import ConfigError, InputError
from riverrun.base.progress import Progress
from riverrun.chain.assistant import make_assistant
from riverrun.chain.drafting import draft_app, write_draft
from riverrun.chain.preview import preview
from riverrun.chain.run import open_context, run_app
from riverrun.chain.spec import AppSpec, load_app
from riverrun.chain.stage import STAGES, read_json, read_jsonl
from tests.chain.conftest import APP
from tests.chain.doubles import PARTS
from tests.data.hostile import SCHEMAS, make
from tests.data.test_page_questions import PAGES

ROOT = Path(__file__).parents[2]
GATES = ("success", "quantized_drop", "through_agent", "safety_worse", "sums_change", "retention_perplexity")
TINY = [
    *("candidates=[../model]", "memory_gb=4", "database.seconds=60", "select.dev_questions=2"),
    *("evaluate.retention_characters=3000", "evaluate.sums=4"),
    *("synthesis.train=80", "synthesis.dev=12", "synthesis.sealed=24"),
    *(f"gates.{name}=null" for name in GATES),
]


def pages_in(folder: Path) -> Path:
    folder.mkdir()
    for page in PAGES:
        sentences = page.text.replace("\n", "</p><p>")
        (folder / page.id).write_text(f"<title>{page.metadata['title']}</title><p>{sentences}</p>" + FILLING)
    return folder


FILLING = (
    "<p>Bring it to the harbour on a weekday and ask for the keeper, who is there with the tools and has time.</p>"
)


def test_a_drafted_application_runs_unedited(tmp_path: Path) -> None:
    database = make("undeclared", tmp_path / "shop data.sqlite")
    shutil.copytree(APP / "model", tmp_path / "model")
    draft = draft_app(
        "shop", tmp_path / "shop", str(database), pages_in(tmp_path / "pages"), language="en", candidates=()
    )
    path = write_draft(draft, tmp_path / "shop", force=False)
    assert [file.name for file in (tmp_path / "shop").iterdir()] == ["app.yaml"]
    assert "tbl_orders.customer_id -> tbl_customers (inferred)" in path.read_text()
    assert all(stage in preview(open_context(tmp_path / "shop", TINY, parts=PARTS)) for stage in STAGES)
    out = tmp_path / "run"
    run_app(tmp_path / "shop", TINY, out=out, progress=Progress("quiet"), parts=PARTS, isolate=False)
    summary = read_json(out / "summary.json")
    assert summary["stages"]["data"]["counts"]["sealed_by_kind"]["page"] >= 1
    kinds = {row["kind"] for row in read_jsonl(out / "data" / "questions_sealed.jsonl")}
    assert {"lookup", "join", "page", "chat"} <= kinds
    rows = [row for row in read_jsonl(out / "data" / "train.jsonl") if "messages" in row]
    both = [row for row in rows if len(row["messages"][2].get("tool_calls") or ()) == 2]
    assert both or summary["stages"]["data"]["counts"]["train_by_kind"].get("both", 0) == 0
    assert read_jsonl(out / "data" / "safety_sealed.jsonl")
    assert (out / "report" / "index.html").is_file()


@pytest.mark.parametrize("name", SCHEMAS)
def test_hostile_schemas_get_a_spec_that_reads(name: str, tmp_path: Path) -> None:
    database = make(name, tmp_path / "x.sqlite")
    draft = draft_app("app", tmp_path / "app", str(database), None, language="en", candidates=["some-model"])
    write_draft(draft, tmp_path / "app", force=False)
    spec, folder = load_app(tmp_path / "app")
    assert (folder / spec.database.path).resolve() == database.resolve()
    assert spec.documents is None
    assert spec.candidates == ("some-model",)
    assistant = make_assistant(spec, database, [])
    assert list(assistant.tools) == ["query_database"]
    assert len(assistant.system) < 1500
    comments = [line for line in draft.text.splitlines() if line.lstrip().startswith("#")]
    assert len(comments) >= 5


def test_what_is_shown_is_what_the_prompt_names(tmp_path: Path) -> None:
    database = make("blob", tmp_path / "x.sqlite")
    draft = draft_app("app", tmp_path / "app", str(database), None, language="en", candidates=())
    spec = AppSpec.model_validate(yaml.safe_load(draft.text))
    assert "Tables: pictures(title)" in make_assistant(spec, database, []).system
    wrong = spec.model_copy(update={"database": spec.database.model_copy(update={"show": {"picture": ()}})})
    with pytest.raises(InputError, match=r"no table 'picture'\. Did you mean 'pictures'"):
        make_assistant(wrong, database, [])
    wrong = spec.model_copy(update={"database": spec.database.model_copy(update={"show": {"pictures": ("titel",)}})})
    with pytest.raises(InputError, match=r"no column 'titel'\. Did you mean 'title'"):
        make_assistant(wrong, database, [])


def test_chinese_applications(tmp_path: Path) -> None:
    database = make("chinese", tmp_path / "x.sqlite")
    draft = draft_app("dian", tmp_path / "dian", str(database), None, language="zh", candidates=())
    spec = AppSpec.model_validate(yaml.safe_load(draft.text))
    assert spec.language == "zh"
    assert spec.select.languages == "any", "the built-in candidate lists English alone"
    assert "# smollm2-135m-instruct does not list zh" in draft.text
    assert "客户" in spec.system


def test_credentials_are_denied_in_the_draft(tmp_path: Path) -> None:
    database = tmp_path / "u.sqlite"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT, email TEXT, password TEXT)")
        connection.executemany("INSERT INTO users VALUES (?, ?, ?, ?)", [(n, f"Al Bo{n}", "e", "p") for n in range(9)])
        connection.commit()
    draft = draft_app("users", tmp_path / "users", str(database), None, language="en", candidates=())
    spec = AppSpec.model_validate(yaml.safe_load(draft.text))
    assert spec.database.deny_columns == ("users.password",)
    assert "# Personal, and readable: users.email" in draft.text


def test_pages_that_are_all_dropped_are_left_out_by_name(tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "a.txt").write_text("Hm.")
    database = make("one_table", tmp_path / "x.sqlite")
    draft = draft_app("app", tmp_path / "app", str(database), tmp_path / "pages", language="en", candidates=())
    assert "documents" not in yaml.safe_load(draft.text)
    assert "No documents: every page was dropped (too_short: 1)" in draft.text


def test_what_cannot_be_used_is_refused_in_one_sentence(tmp_path: Path) -> None:
    database = make("one_table", tmp_path / "x.sqlite")
    empty, text = tmp_path / "empty", tmp_path / "notes.txt"
    empty.mkdir()
    text.write_text("this is no database at all")
    bare = tmp_path / "bare.sqlite"
    with closing(sqlite3.connect(bare)) as connection:
        connection.execute("CREATE TABLE t (x)")
        connection.execute("DROP TABLE t")
        connection.commit()
    good = ("app", str(database), None, "en")
    for change, sentence in (
        ({1: str(tmp_path / "none.db")}, "does not exist"),
        ({1: str(text)}, "is not an SQLite database"),
        ({1: str(bare)}, "holds no table"),
        ({1: str(empty)}, "is a folder"),
        ({1: "oracle://user:pw@host/db"}, r"oracle://user:\*\*\*@host/db: databases are SQLite files, postgresql:"),
        ({1: "mysql+pymysql://host/db"}, "a user and a database are needed"),
        ({2: empty}, "holds no page"),
        ({2: text}, "is not a folder"),
        ({3: "de"}, "--language de: no such language"),
        ({0: "My App"}, "NAME 'My App' must be lower-case"),
    ):
        name, path, documents, language = (change.get(place, value) for place, value in enumerate(good))
        with pytest.raises(InputError, match=sentence):
            draft_app(str(name), tmp_path / "app", str(path), documents, language=str(language), candidates=())  # type: ignore[arg-type]


def test_the_command_writes_once_and_again_only_when_forced(tmp_path: Path) -> None:
    database = make("undeclared", tmp_path / "x.sqlite")
    command = [sys.executable, "-m", "riverrun.cli.main", "init", str(tmp_path / "app"), "--database", str(database)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "3 of 3 tables shown, 2 links (2 inferred)" in done.stdout
    before = (tmp_path / "app" / "app.yaml").read_text()
    again = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert again.returncode == 2
    assert "is there already: give another NAME, or --force" in again.stderr
    forced = subprocess.run(
        [*command, "--force", "--candidate", "other"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert forced.returncode == 0
    after = (tmp_path / "app" / "app.yaml").read_text()
    other = before.replace("[smollm2-135m-instruct]", "[other]")
    shipped = ("# Training goes on", "finetune:", "synthesis:", "# ", "quantize:")  # follow from candidate and machine
    assert [line for line in after.splitlines() if not line.startswith(shipped)] == [
        line for line in other.splitlines() if not line.startswith(shipped)
    ]
    assert "start: shipped" in before
    assert "start: shipped" not in after


def test_a_spec_names_one_source_of_questions() -> None:
    base = {"name": "x", "system": "s", "candidates": ["m"], "database": {"path": "d"}}
    for change, sentence in (
        ({}, "exactly one of intents and synthesis"),
        ({"intents": "a.yaml", "synthesis": {}}, "exactly one of intents and synthesis"),
        ({"synthesis": {}, "choices": "generated"}, "choices = 'generated' needs documents"),
        ({"synthesis": {"max_rows": 30}}, "synthesis.max_rows = 30 is above database.row_limit = 20"),
        ({"synthesis": {"trian": 30}}, "Extra inputs"),
    ):
        with pytest.raises(ValueError, match=sentence):
            AppSpec.model_validate(base | change)
    assert AppSpec.model_validate(base | {"synthesis": {}}).documents is None


def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    database = make("one_table", tmp_path / "x.sqlite")
    write_draft(
        draft_app("app", tmp_path / "app", str(database), None, language="en", candidates=()),
        tmp_path / "app",
        force=False,
    )
    with pytest.raises(ConfigError, match=r"unknown key 'synthesis.sealled'\. Did you mean 'sealed'"):
        load_app(tmp_path / "app", ["synthesis.sealled=3"])
    assert json.loads(load_app(tmp_path / "app")[0].model_dump_json())["synthesis"]["sealed"] == 240
