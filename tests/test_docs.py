"""The pages are true: Python is executed, commands are parsed, YAML is read, links lead somewhere, both READMEs agree.

Fences: ```python runs, in order and in one namespace a page, in an empty folder beside recipes/. ```sh is read by the
programs' own parsers, not run. ```yaml is a recipe's file. ```text is shown only. Other fences are not used.
"""

from __future__ import annotations

import re
import runpy
import shlex
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from riverrun.base.progress import Progress
from riverrun.chain.run import run_app
from riverrun.chain.spec import load_app
from riverrun.cli.main import app
from riverrun.train.recipe import load_recipe
from tests.chain.doubles import PARTS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md")), *sorted((ROOT / "recipes").rglob("*.md"))]
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
UsageError = typer.BadParameter.__mro__[1]  # typer brings a click of its own
GENERATED = runpy.run_path(str(DOCS / "generate.py"))["PAGES"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]+)(#[^)\s]*)?\)")
SHELL = {"cd", "cp", "mkdir", "git", "curl", "cat", "kill"}


@dataclass(frozen=True)
class Block:
    language: str
    text: str


def blocks(page: Path, *languages: str) -> list[Block]:
    found = [Block(*match) for match in FENCE.findall(page.read_text(encoding="utf-8"))]
    return [block for block in found if not languages or block.language in languages]


def short(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=short)
def test_fences_are_closed_and_of_known_kinds(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count("\n```") == 2 * len(blocks(page))
    assert {block.language for block in blocks(page)} <= {"python", "sh", "yaml", "text", "json"}


@pytest.mark.parametrize("page", PAGES, ids=short)
def test_links_lead_somewhere(page: Path) -> None:
    for target, _ in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{short(page)} links to {target}, which does not exist"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=short)
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smollm2_here: bool) -> None:
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    text = "\n".join(block.text for block in blocks(page, "python"))
    if "smollm2" in text and not smollm2_here:
        pytest.skip("not run here: the model is not in the store (riverrun hub get smollm2-135m-instruct)")
    script = tmp_path / f"{page.stem}.py"
    script.write_text(text, encoding="utf-8")
    runpy.run_path(str(script), run_name="__main__")


@pytest.fixture(scope="session")
def smollm2_here(request: pytest.FixtureRequest) -> bool:
    try:
        return bool(request.getfixturevalue("smollm2"))
    except pytest.skip.Exception:
        return False


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z%-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def parse_riverrun(arguments: list[str]) -> None:
    """Read by the command line's own parser; it raises UsageError for what it does not know."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        if "--help" in arguments[:1]:
            return
        command = command.commands[arguments.pop(0)]
    command.make_context(command.name, arguments)


def check_command(line: str) -> None:
    """One line of a shell block; AssertionError or UsageError when it cannot be typed like that."""
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"\w+=.*", words[0]):
        words.pop(0)
    if not words:
        return
    program, arguments = words[0], words[1:]
    if program == "make":
        for target in (word for word in arguments if "=" not in word):
            known = make_targets()
            assert target in known or re.sub(r"-.*", "-%", target) in known, f"make has no target '{target}'"
    elif program in ("riverrun", ".venv/bin/riverrun"):
        parse_riverrun(arguments)
        for word in arguments:
            assert not word.startswith("recipes/bookshop") or (ROOT / word).exists(), word
    elif program.endswith("pip"):
        extras = re.findall(r"\[([\w,]+)\]", line)
        text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        assert all(re.search(rf"^{name} = \[", text, re.MULTILINE) for extra in extras for name in extra.split(","))
    elif program.endswith("python") or program.startswith("python3"):
        if arguments[:1] == ["-m"] and arguments[1].startswith("bench."):
            assert (ROOT / (arguments[1].replace(".", "/") + ".py")).exists(), line
    else:
        assert program in SHELL, f"'{program}' is no program that the pages use"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sh")], ids=short)
def test_commands_can_be_typed(page: Path) -> None:
    for block in blocks(page, "sh"):
        for line in block.text.replace("\\\n", " ").splitlines():
            check_command(line)


@pytest.mark.parametrize("line", ["riverrun run recipes/bookshop --form plan", "make quickstar", "riverrun serv x"])
def test_wrong_commands_are_seen(line: str) -> None:
    with pytest.raises((AssertionError, KeyError, UsageError)):
        check_command(line)


@pytest.mark.parametrize("name", GENERATED)
def test_pages_made_from_the_code_are_as_it_says_now(name: str) -> None:
    written = (DOCS / name).read_text(encoding="utf-8")
    assert written == GENERATED[name](), f"docs/{name} is old: make docs"


def test_every_key_of_the_spec_has_a_meaning() -> None:
    text = (DOCS / "app-yaml.md").read_text(encoding="utf-8")
    assert not re.findall(r"^\| `\w+` \|  \|", text, re.MULTILINE)


def outline(page: Path) -> list[str]:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return [line.split(" ")[0] for line in text.splitlines() if line.startswith("#")]


def test_both_readmes_say_the_same() -> None:
    english, chinese = READMES
    assert outline(english) == outline(chinese)
    assert blocks(english, "sh", "yaml", "python") == blocks(chinese, "sh", "yaml", "python")
    targets = [[target for target, _ in LINK.findall(page.read_text(encoding="utf-8"))] for page in READMES]
    assert targets[0][1:] == targets[1][1:], "the first link leads to the other language"
    sizes = [re.findall(r"[\d.]+ [MG]B", page.read_text(encoding="utf-8")) for page in READMES]
    assert sizes[0] == sizes[1]


def test_every_room_has_its_page_and_stands_in_the_readme() -> None:
    rooms = {path.parent.name for path in (ROOT / "riverrun").glob("*/__init__.py")}
    for readme in READMES:
        text = readme.read_text(encoding="utf-8")
        assert rooms == set(re.findall(r"^\| \[`(\w+)`\]\(docs/\w+\.md\) \|", text, re.MULTILINE)), short(readme)
    assert rooms <= {page.stem for page in DOCS.glob("*.md")}


GARDEN = {
    "watering.html": "Tomatoes want water every morning, at the root and never on the leaves. In a hot week pots want "
    "a second round before sunset, and a saucer keeps what runs through. Herbs from dry hills, such as thyme and sage, "
    "are happier when the soil dries out first. If leaves turn yellow, lift the pot: a heavy one has had too much.",
    "returns.html": "Plants may be brought back within fourteen days when the receipt is shown. Cut flowers and opened "
    "seeds stay with the customer. Garden tools are covered for three years, and our workshop repairs most of them "
    "while you wait. For a tree that did not survive its first winter we offer half of its price towards another.",
    "opening.html": "The garden centre opens at eight from Monday to Saturday and closes at dusk. On Sunday the gates "
    "stay shut, but the cafe beside the glass house serves cake from ten. Parking is free for customers, and a bus "
    "stops at the main road. Dogs are welcome on a lead everywhere except among the young vegetables.",
}


def make_garden(folder: Path) -> None:
    """The files that the READMEs' own application speaks of, next to their first two YAML blocks."""
    folder.mkdir()
    for name, text in zip(("app.yaml", "intents.yaml"), blocks(READMES[0], "yaml")[:2], strict=True):
        (folder / name).write_text(text.text, encoding="utf-8")
    (folder / "pages").mkdir()
    for name, text in GARDEN.items():
        html = f"<html><head><title>{name}</title></head><body><h1>{name}</h1><p>{text}</p></body></html>"
        (folder / "pages" / name).write_text(html, encoding="utf-8")
    with sqlite3.connect(folder / "garden.sqlite") as connection:
        connection.execute("CREATE TABLE plants(id INTEGER PRIMARY KEY, name TEXT, price REAL, stock INTEGER)")
        connection.execute("CREATE TABLE customers(id INTEGER PRIMARY KEY, name TEXT, email TEXT)")
        rows = [(number, f"Rose {number}", 3.5 + number, number % 4) for number in range(60)]
        connection.executemany("INSERT INTO plants VALUES (?, ?, ?, ?)", rows)
    connection.close()


def test_the_application_of_the_readme_runs(tmp_path: Path) -> None:
    """Its files as printed, on pages and a database of its own, through every stage on a tiny budget."""
    folder = tmp_path / "garden"
    make_garden(folder)
    spec, _ = load_app(folder)
    assert spec.candidates == ("smollm2-135m-instruct",)
    assert len((folder / "app.yaml").read_text(encoding="utf-8").splitlines()) <= 40
    tiny = [f"candidates=['{ROOT / 'tests/chain/app/model'}']", "memory_gb=4", "select.dev_questions=2"]
    tiny += ["data={train_per_intent: 4, dev_per_intent: 1, sealed_per_intent: 2}"]
    tiny += ["evaluate={retention_characters: 2000, sums: 4}", "gates={success: null, quantized_drop: null}"]
    out = tmp_path / "run"
    summary = run_app(folder, tiny, out=out, progress=Progress("quiet"), parts=PARTS, isolate=False)
    assert summary["data"]["kept"] == len(GARDEN)
    assert summary["data"]["train_rows"] > 0
    assert (out / "report" / "index.html").is_file()
    schema = yaml.safe_load((folder / "app.yaml").read_text(encoding="utf-8"))["database"]
    assert schema["deny_columns"] == ["email"]


def test_the_training_recipe_of_the_readme_is_read(tmp_path: Path) -> None:
    text = blocks(READMES[0], "yaml")[2].text
    (tmp_path / "my.yaml").write_text(text, encoding="utf-8")
    config = load_recipe(tmp_path / "my.yaml", ("run.length=200 steps",))
    assert (config.method.name, config.run.length.unit) == ("lora", "steps")
    assert "smollm2-135m-instruct" in config.model.path
