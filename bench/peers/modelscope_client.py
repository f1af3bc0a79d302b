"""The real ModelScope client against the loopback server, both ways: `modelscope_client.py JOB.json ANSWER.json`.

Reads a model and a data set, publishes a folder through `riverrun.hub.publish`, reads it back with riverrun.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from pathlib import Path

__all__ = ["main"]

FILES = {"config.json": b"{}", "nested/weights.bin": random.Random(4).randbytes(20_000), "中文.txt": "字".encode()}
LARGE = random.Random(1).randbytes(6_000_000)
"""Large enough for the client to send it as an LFS object."""


def _contents(folder: Path) -> dict[str, bytes]:
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {path: content for path, content in found.items() if not path.startswith(".")}


def main() -> None:
    job, answer = (Path(argument) for argument in sys.argv[1:])
    sys.path.insert(0, json.loads(job.read_text())["root"])
    from riverrun.hub.catalog import card_of
    from riverrun.hub.publish import publish
    from riverrun.hub.store import Store
    from tests.hub.protocols import ProtocolServer, Repository

    wrong = 0
    with ProtocolServer() as server, tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        names = {"ENDPOINT": server.url, "HOME": f"{folder}/home", "CACHE": f"{folder}/cache"}
        os.environ.update({f"MODELSCOPE_{key}": value for key, value in names.items()})
        from modelscope_hub import HubApi

        for kind in ("model", "dataset"):
            server.repositories[f"team/{kind}"] = Repository(dict(FILES), dataset=kind == "dataset")
            HubApi(endpoint=server.url).download_repo(f"team/{kind}", kind, local_dir=folder / kind)
            wrong += _contents(folder / kind) != FILES
            prefix = "datasets/" if kind == "dataset" else ""
            ours = Store(folder / f"ours-{kind}").fetch(card_of(f"modelscope:{prefix}team/{kind}"))
            wrong += _contents(ours) != FILES
        given = folder / "given"
        given.mkdir()
        (given / "large.bin").write_bytes(LARGE)
        (given / "card.yaml").write_text("{name: greet, kind: model, licence: apache-2.0, languages: [en]}")
        before = _contents(given)
        publish(given, "modelscope:team/new", token=server.token)
        back = Store(folder / "back").fetch(card_of("modelscope:team/new"))
        wrong += _contents(back) != before
    answer.write_text(json.dumps({"wrong": wrong, "checks": 5}))


if __name__ == "__main__":
    main()
