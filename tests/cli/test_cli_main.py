"""The command line from outside: help, exit codes, sentences instead of tracebacks, talk through a pipe."""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import typer

from riverrun.base.errors import InputError
from riverrun.base.fakes import FakeModel
from riverrun.base.types import SamplingParams
from riverrun.cli.chat import converse
from riverrun.cli.doctor import findings
from riverrun.cli.errors import errors

ROOT = Path(__file__).parents[2]


def riverrun(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    env: Mapping[str, str] = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-m", "riverrun.cli.main", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, env=env, cwd=ROOT, check=False)


def test_help_imports_nothing_heavy() -> None:
    done = riverrun("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("init", "run", "ask", "chat", "serve", "report", "doctor", "hub"))
    probe = "import sys; from riverrun.cli.main import app; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, cwd=ROOT, check=True)
    heavy = {"pydantic", "torch", "numpy", "rich", "yaml", "httpx", "jinja2"} & set(done.stdout.split())
    assert not heavy


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("run", "recipes/none"), "recipes/none does not exist"),
        (("run", "recipes/bookshop", "finetune.epoch=3"), "unknown key 'finetune.epoch'. Did you mean 'epochs'?"),
        (("run", "recipes/bookshop", "--until", "agents"), "no such stage. Did you mean 'agent'?"),
        (("run", "recipes/bookshop", "--progress", "line"), "no such form. Did you mean 'lines'"),
        (("chat",), "give either a run folder or model, or --url"),
        (("chat", "./nothing.gguf"), "nothing.gguf does not exist"),
        (("serve", "./nothing.gguf", "--host", "0.0.0.0"), "give at least one --api-key"),
        (("init", "x", "--database", "none.sqlite"), "none.sqlite does not exist"),
        (("ask", "runs/none", "--questions", "none.jsonl"), "none.jsonl cannot be read"),
        (("report", "runs/none"), "does not exist: finish the run first"),
        (("hub", "info", "smollm"), "smollm2-135m-instruct"),
    ],
)
def test_a_wrong_request_gets_one_sentence_and_exit_code_2(arguments: tuple[str, ...], sentence: str) -> None:
    done = riverrun(*arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_port_in_use_is_refused_before_a_model_is_loaded() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = riverrun("serve", "smollm2-135m-instruct", "--port", port)
    assert done.returncode == 2
    assert f"port {port} on 127.0.0.1 is in use: choose another with --port" in done.stderr
    assert done.stderr.count("\n") == 1


def test_debug_shows_the_traceback_and_zh_the_chinese_word() -> None:
    assert "Traceback" in riverrun("run", "recipes/none", RIVERRUN_DEBUG="1").stderr
    assert riverrun("run", "recipes/none", RIVERRUN_LANG="zh").stderr.startswith("错误: ")


def test_doctor_names_everything_and_exits_0() -> None:
    done = riverrun("doctor")
    assert done.returncode == 0
    for name in ("Python", "CPU cores", "free memory", "torch", "browser", "user namespaces", "PostgreSQL", "cache"):
        assert name in done.stdout
    chinese = riverrun("doctor", RIVERRUN_LANG="zh")
    assert chinese.returncode == 0
    assert "可用内存" in chinese.stdout


def test_what_doctor_misses_comes_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    browser = next(finding for finding in findings() if finding.name[0] == "browser")
    assert not browser.ok
    assert "apt-get install" in browser.advice[0]
    assert all(finding.advice[0] and finding.advice[1] for finding in findings() if not finding.ok)


def test_talk_through_a_pipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model = FakeModel(["Good day!", "It costs two dollars."])
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n\n/what\nHow much?\n/new\nAgain?\n/quit\nnever asked\n"))
    converse(model, SamplingParams(), "Be brief.")
    shown = capsys.readouterr()
    assert shown.out == "Good day!\nIt costs two dollars.\nIt costs two dollars.\n"
    assert "/what is no command here" in shown.err
    asked = [[message.text for message in request.messages] for request in model.requests]
    assert asked[0] == ["Be brief.", "Hello"]
    assert asked[1] == ["Be brief.", "Hello", "Good day!", "How much?"]
    assert asked[2] == ["Be brief.", "Again?"]


def test_talk_with_a_server_finds_its_agent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from riverrun.cli.chat import chat_command
    from riverrun.serve.http.app import make_app
    from riverrun.serve.http.server import BackgroundServer

    models = {"shop": FakeModel(["plain"]), "shop-agent": FakeModel(["from the agent"], name="shop-agent")}
    with BackgroundServer(make_app(models, api_keys=["k1"])) as server:
        for arguments, answer in ((("", "k1"), "from the agent"), (("shop", "k1"), "plain")):
            monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
            chat_command("", server.url, *arguments, "", 16, 0.0)
            assert capsys.readouterr().out == f"{answer}\n"
        with pytest.raises(InputError, match=r"lists no models \(status 401\): check the address and --api-key"):
            chat_command("", server.url, "", "wrong", "", 16, 0.0)


def test_ctrl_c_and_a_closed_pipe_end_quietly(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught, errors():
        raise KeyboardInterrupt
    assert caught.value.exit_code == 130
    assert "run the same command again" in capsys.readouterr().err
    command = f"{sys.executable} -m riverrun.cli.main doctor | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
