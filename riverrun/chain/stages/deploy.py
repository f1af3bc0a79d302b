"""deploy: write down what is served, start the server once on a free port and check it as a client would."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from riverrun.base.artifacts import write_json
from riverrun.base.errors import RiverrunError
from riverrun.base.progress import Progress
from riverrun.chain.application import SERVER_FILE, describe, open_models, pages_of
from riverrun.chain.serving import check_server, serving
from riverrun.chain.stage import Context, StageResult, read_json

__all__ = ["Deploy"]


class Deploy:
    name: ClassVar[str] = "deploy"
    code: ClassVar[tuple[str, ...]] = (
        "base",
        "wire",
        "web",
        "models",
        "serve",
        "agent",
        "chain/application.py",
        "chain/assistant.py",
        "chain/pages.py",
        "chain/serving.py",
    )
    resumable: ClassVar[bool] = False
    isolated: ClassVar[bool] = True

    def inputs(self, ctx: Context) -> dict[str, str]:
        chosen = read_json(ctx.folder("quantize") / "chosen.json")["variant"]
        return ctx.upstream("quantize", chosen, "chosen.json") | ctx.upstream("data", "shop.sqlite", "kept.jsonl")

    def config(self, ctx: Context) -> dict[str, Any]:
        return describe(ctx, "")

    def run(self, ctx: Context, folder: Path, progress: Progress) -> StageResult:
        variant = read_json(ctx.folder("quantize") / "chosen.json")["variant"]
        server = describe(ctx, f"quantize/{variant}")
        write_json(folder / SERVER_FILE, server)
        data = ctx.folder("data")
        files = ctx.folder("quantize") / variant, data / "shop.sqlite", data / "kept.jsonl"
        pages = pages_of(ctx.out, server)
        with open_models(ctx.spec, *files, ctx.parts, **pages) as application, serving(application) as url:
            progress.say(f"  server on {url}")
            checks = check_server(url, application)
        write_json(folder / "smoke.json", checks)
        failed = [check for check in checks if not check["ok"]]
        if failed:
            raise RiverrunError(
                f"the server failed the check '{failed[0]['check']}': {failed[0]['found']} "
                f"(all checks are in {folder / 'smoke.json'})"
            )
        return StageResult(counts={"checks": len(checks)}, scores={"deploy.ok": 1})
