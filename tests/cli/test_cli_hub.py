"""`riverrun hub` from the outside: what it prints, its exit codes, and hostile arguments."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from riverrun.cli.main import app
from tests.hub.test_hub_hubs import CARD, FILES, write


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIVERRUN_HOME", str(tmp_path / "home"))
    for name in ("RIVERRUN_HUB", "RIVERRUN_HUB_TOKEN", "HF_TOKEN", "MODELSCOPE_API_TOKEN", "RIVERRUN_DEBUG"):
        monkeypatch.delenv(name, raising=False)


def hub(*arguments: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["hub", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def test_publish_search_get_verify_diff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, place = write(tmp_path / "given", CARD, FILES), tmp_path / "hub"
    assert hub("publish", folder, place)[0] == 0
    code, output = hub("search", "问候", "--language", "中文", "--hub", place)
    assert code == 0
    assert "greetings" in output
    assert "Greetings in two languages" in output
    code, output = hub("get", "greetings", "--hub", place, "--only", "train", "--to", tmp_path / "out")
    assert code == 0, output
    assert [p.name for p in (tmp_path / "out").rglob("*") if p.is_file()] == ["a.jsonl"]
    monkeypatch.setenv("RIVERRUN_HUB", str(place))
    assert "3 not fetched" in hub("verify", "greetings")[1]
    assert "in the hub" in hub("list")[1]
    code, output = hub("info", "greetings")
    assert "licence in full: Creative Commons Attribution 4.0" in output
    assert "not fetched: 3 of them" in output
    assert hub("diff", folder, "greetings") == (0, "0 added, 0 removed, 0 changed, 4 equal\n")
    (folder / "data.bin").write_bytes(b"new")
    assert hub("diff", "greetings", folder)[1].startswith("! data.bin\n")
    assert hub("diff", folder)[1].startswith("! data.bin\n"), "what publishing it again would change"
    (tmp_path / "out" / "train" / "a.jsonl").write_bytes(b"mine")
    code, output = hub("get", "greetings", "--only", "train", "--to", tmp_path / "out")
    assert code == 2
    assert "is there with other contents" in output


def test_unpack(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        packed.writestr("a/b.txt", "b")
    code, output = hub("get", f"file:{tmp_path}/x.zip", "--unpack", "--to", tmp_path / "out")
    assert code == 0, output
    assert (tmp_path / "out" / "x" / "a" / "b.txt").read_text() == "b"
    (tmp_path / "plain.txt").write_text("x")
    assert hub("get", f"file:{tmp_path}/plain.txt", "--unpack")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("search", "zzzz"), "nothing fits 'zzzz'"),
        (("search", "--kind", "x"), "--kind x is none of"),
        (("info", "../../etc/passwd"), "no card is named"),
        (("info", "../x", "--hub", "."), "is no card's name"),
        (("info", "名字"), "no card is named '名字'"),
        (("info", ""), "no card is named ''"),
        (("get", "hf:x"), "names no repository: write hf:"),
        (("get", "http://example.org/x"), "is not encrypted"),
        (("get", "file:/nowhere/at/all"), "cannot be read"),
        (("verify", "wanjuan-1.0"), "is not in the store"),
        (("diff", "wanjuan-1.0"), "needs a second card"),
        (("publish", "."), "publish needs a place"),
        (("publish", "/nowhere", "/tmp/x"), "does not exist"),
        (("serve", "/nowhere"), "is no folder"),
        (("list", "--hub", "/nowhere"), "is no hub"),
    ],
)
def test_one_sentence_and_exit_code_two(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    code, output = hub(*arguments)
    assert code == 2, output
    assert said in output
    assert "Traceback" not in output
