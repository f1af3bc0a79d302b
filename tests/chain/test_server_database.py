"""An application over a server's database: drafted, run on one snapshot, served live; no password in any file."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import riverrun.chain.stages.data as data_stage
from riverrun.base.errors import InputError
from riverrun.base.progress import Progress
from riverrun.base.servers import Server
from riverrun.base.types import ToolCall
from riverrun.chain.application import open_application
from riverrun.chain.drafting import draft_app, write_draft
from riverrun.chain.run import run_app
from riverrun.chain.stage import read_json
from tests.chain.conftest import APP
from tests.chain.doubles import PARTS
from tests.chain.test_drafting import TINY
from tests.live_servers import PASSWORD, connect

VARIABLE = "RIVERRUN_DATABASE_PASSWORD"


@pytest.fixture(params=["postgres", "mariadb"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The shop as a role that can only read; the views that never end are the owner's alone."""
    owner: Server = request.getfixturevalue(request.param)
    monkeypatch.setattr("riverrun.data.servers.snapshot.__kwdefaults__", {"seconds": 1.0})
    return replace(owner, user="reader", password="")


def test_an_application_over_a_server(reader: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, PASSWORD)
    shutil.copytree(APP / "model", tmp_path / "model")
    draft = draft_app("shop", tmp_path / "shop", reader.url, None, language="en", candidates=())
    write_draft(draft, tmp_path / "shop", force=False)
    spec = yaml.safe_load(draft.text)
    assert spec["database"]["url"] == reader.url
    assert spec["database"]["password_variable"] == VARIABLE
    assert "safer" not in draft.text
    assert draft.said[-1].endswith(f"from the environment variable {VARIABLE}")
    taken: list[Path] = []
    snapshot = data_stage.snapshot

    def counted(server: Server, out: Path, *, rows_per_table: int):  # type: ignore[no-untyped-def]
        taken.append(out)
        return snapshot(server, out, rows_per_table=rows_per_table)

    monkeypatch.setattr(data_stage, "snapshot", counted)
    out = tmp_path / "run"
    for start in ("", "data"):
        run_app(tmp_path / "shop", TINY, out=out, start=start, progress=Progress("quiet"), parts=PARTS, isolate=False)
    assert len(taken) == 2, "one for select and data, one more for --from data"
    assert not list(out.glob(".snapshot*"))
    assert read_json(out / "data" / "lineage.json")["inputs"].keys() >= {reader.url}
    for file in [path for path in tmp_path.rglob("*") if path.is_file()]:
        assert PASSWORD.encode() not in file.read_bytes(), file
    with open_application(out, database=reader.url, parts=PARTS) as application, connect(
        replace(reader, user="owner", password=PASSWORD)
    ) as connection:  # fmt: skip
        connection.cursor().execute("INSERT INTO empty_one VALUES (7, 'live')")
        try:
            found = application.assistant.execute(
                ToolCall("query_database", {"sql": "SELECT x FROM empty_one WHERE X LIKE 'LIVE'"}, "1")
            )
        finally:
            connection.cursor().execute("DELETE FROM empty_one")
    assert found.content == "x: live"
    with open_application(out, parts=PARTS) as application:
        copied = application.assistant.execute(ToolCall("query_database", {"sql": "SELECT x FROM empty_one"}, "1"))
    assert copied.content == "(no rows)"
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(InputError, match="cannot be opened"), open_application(out, database=reader.url, parts=PARTS):
        pass


def test_a_role_that_may_write_is_named_with_the_grants(reader: Server, tmp_path: Path) -> None:
    owner = replace(reader, user="owner", password=PASSWORD)
    url = owner.url.replace("owner@", "owner:s3cret%3A%2F%40%20%25pw@")
    assert Server.parse(url).password == PASSWORD
    draft = draft_app("shop", tmp_path / "shop", url, None, language="en", candidates=())
    assert "a role that can only read is safer" in draft.text
    assert any("GRANT SELECT" in line for line in draft.said)
    assert any(line.startswith("#") and "GRANT SELECT" in line for line in draft.text.splitlines())
    assert "# broken: cannot be read" in draft.text
    assert not [text for text in (draft.text, *draft.said) if PASSWORD in text or "s3cret" in text]


def test_a_server_that_refuses_is_one_sentence(reader: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be opened") as caught:
        draft_app("shop", tmp_path, reader.url.replace("reader@", "reader:nope@"), None, language="en", candidates=())
    assert "nope" not in str(caught.value)
