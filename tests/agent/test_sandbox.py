"""The process sandbox: what it gives back, what it stops. No probe here could harm the host if it were not stopped."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from pathlib import Path

import pytest

from riverrun.agent.sandbox import launcher
from riverrun.agent.sandbox.process import Limits, ProcessSandbox
from riverrun.base.errors import InputError, UnsupportedError
from riverrun.base.protocols import Sandbox

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="not run here: the process sandbox needs Linux")


@pytest.fixture(scope="module")
def sandbox() -> ProcessSandbox:
    return ProcessSandbox(limits=Limits(memory_bytes=256 << 20, file_bytes=1 << 20, output_bytes=1000))


def test_output_and_exit_code(sandbox: ProcessSandbox) -> None:
    assert isinstance(sandbox, Sandbox)
    assert sandbox.run("import sys\nprint(sys.version)").stdout == sys.version + "\n"
    result = sandbox.run("import sys\nprint(6 * 7, 'é')\nprint('bad', file=sys.stderr)\nsys.exit(3)")
    assert (result.stdout, result.stderr, result.exit_code, result.timed_out) == ("42 é\n", "bad\n", 3, False)
    assert result.files == {}
    assert "ZeroDivisionError" in sandbox.run("1 / 0").stderr
    assert sandbox.run("x = '\ud800'\n\0").exit_code == 1


def test_files_in_and_out(sandbox: ProcessSandbox) -> None:
    code = """
import os
text = open('in/a.txt').read()
open('out.txt', 'w').write(text.upper())
open('in/a.txt', 'a').close()
os.makedirs('deep')
open('deep/b.bin', 'wb').write(b'\\x00')
os.symlink('/etc/hostname', 'link')
os.mkfifo('pipe')
os.chmod('deep', 0o500)
"""
    result = sandbox.run(code, files={"in/a.txt": b"hello"})
    assert result.stderr == ""
    assert result.files == {"deep/b.bin": b"\0", "out.txt": b"HELLO"}
    for name in ("../x", "/etc/x", "a/../../x", ""):
        with pytest.raises(InputError, match="leaves the sandbox"):
            sandbox.run("", files={name: b""})


def test_nothing_stays(sandbox: ProcessSandbox) -> None:
    before = set(os.listdir(tempfile.gettempdir()))
    where = sandbox.run(
        "import os\nos.makedirs('a/b')\nos.chmod('a/b', 0)\nos.chmod('a', 0)\nprint(os.getcwd())"
    ).stdout
    assert not Path(where.strip()).exists()
    assert not {name for name in set(os.listdir(tempfile.gettempdir())) - before if Path(where).parts[2] == name}


def test_the_environment_is_empty(sandbox: ProcessSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SECRET", "xyz")
    seen = sandbox.run("import os, sys\nprint(dict(os.environ), sys.flags.isolated, 'site' in sys.modules)").stdout
    assert "SOME_SECRET" not in seen
    assert seen.endswith(" 1 False\n")


def test_time_limit_ends_children_as_well(sandbox: ProcessSandbox) -> None:
    code = "import os, signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nos.fork()\nprint(1, flush=True)\n"
    code += "while True: pass"
    result = sandbox.run(code, timeout_seconds=0.6)
    assert result.timed_out
    assert result.exit_code == 137
    assert result.stdout == "1\n1\n"
    with pytest.raises(InputError, match="timeout_seconds"):
        sandbox.run("", timeout_seconds=0)


def test_memory_file_and_descriptor_limits(sandbox: ProcessSandbox) -> None:
    assert "MemoryError" in sandbox.run("x = bytearray(1 << 30)").stderr
    assert "File too large" in sandbox.run("open('big', 'wb').write(bytes(3 << 20))").stderr
    assert "Too many open files" in sandbox.run("import os\nfs = [open(os.devnull) for _ in range(100)]").stderr


def test_output_is_cut(sandbox: ProcessSandbox) -> None:
    result = sandbox.run("print('x' * 5000)")
    assert result.stdout == "x" * 1000 + "\n(… output cut)"
    flood = sandbox.run("while True: print('x' * 10000)")
    assert not flood.timed_out
    assert flood.stdout.startswith("xxx")


def test_signals_show_in_the_exit_code(sandbox: ProcessSandbox) -> None:
    assert sandbox.run("import os\nos.abort()").exit_code == 134
    assert sandbox.run("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)").exit_code == 137


def test_another_user(sandbox: ProcessSandbox, tmp_path: Path) -> None:
    if sandbox.level == "limits" or os.geteuid() != 0:
        pytest.skip(f"not run here: level '{sandbox.level}' keeps the user id")
    secret = tmp_path / "secret"
    secret.write_text("hidden")
    secret.chmod(0o600)
    result = sandbox.run(f"import os\nprint(os.getuid())\nopen({str(secret)!r})")
    assert result.stdout == "65534\n"
    assert "PermissionError" in result.stderr
    assert sandbox.run("import os\nos.setuid(0)").exit_code == 1


def test_no_network_and_own_processes(sandbox: ProcessSandbox) -> None:
    if sandbox.level != "namespaces":
        pytest.skip(f"not run here: level '{sandbox.level}' has the machine's network")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = sandbox.run(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)")
        assert "OSError" in result.stderr or "ConnectionRefusedError" in result.stderr
    assert sandbox.run("import os\nprint(os.getpid())").stdout == "2\n"
    daemon = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    os.fork()\n    time.sleep(60)\nprint('end')"
    result = sandbox.run(daemon, timeout_seconds=20)
    assert (result.stdout, result.timed_out) == ("end\n", False)
    forks = "import os, time\ntry:\n    while os.fork(): pass\n    time.sleep(60)\nexcept OSError: print('stopped')"
    assert sandbox.run(forks, timeout_seconds=20).stdout == "stopped\n"


def test_levels_are_honest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProcessSandbox, "_permits", lambda self, level: level == "limits")
    assert ProcessSandbox().level == "limits"
    with pytest.raises(UnsupportedError, match="permits 'limits'"):
        ProcessSandbox(require="namespaces")
    assert ProcessSandbox().run("print(1)").stdout == "1\n"


def test_where_namespaces_are_refused_nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sandbox = ProcessSandbox()
    if sandbox.level != "namespaces":
        pytest.skip(f"not run here: level '{sandbox.level}' asks for no namespaces")
    refused = tmp_path / "launcher.py"
    refused.write_text(Path(launcher.__file__).read_text().replace("0x10000000", "0x00000001"))  # an invalid flag
    monkeypatch.setattr(launcher, "__file__", str(refused))
    result = sandbox.run("print('ran')")
    assert (result.stdout, result.exit_code) == ("", 125)
    assert not sandbox._permits("namespaces")
