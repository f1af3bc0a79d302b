"""`riverrun doctor`: one line for each thing the project uses here: there or missing, and what to do about it.

Nothing is changed and nothing is fetched; a missing thing is no failure, since most of it is optional.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from riverrun.base.errors import RiverrunError
from riverrun.chain.words import language

__all__ = ["Finding", "doctor_command", "findings"]


@dataclass(frozen=True)
class Finding:
    """One thing: in both languages its name; what was found; what to do when it is missing."""

    name: tuple[str, str]
    ok: bool
    found: str
    advice: tuple[str, str] = ("", "")


def doctor_command() -> None:
    """Print every finding and a closing line."""
    chinese = language() == "zh"
    good, bad = ("正常", "缺少") if chinese else ("ok", "missing")
    missing = 0
    for finding in findings():
        missing += not finding.ok
        line = f"{good if finding.ok else bad:8}{finding.name[chinese]}: {finding.found}"
        advice = finding.advice[chinese]
        print(line if finding.ok or not advice else f"{line} - {advice}")
    print(f"{missing} 项缺少" if chinese else f"{missing} missing")


def findings() -> Iterator[Finding]:
    """All findings, in the order in which they are shown."""
    yield _python()
    yield _cores()
    yield _memory()
    yield _instructions()
    yield from _packages()
    yield _chromium()
    yield _namespaces()
    yield _postgresql()
    yield _cache()
    yield _model()


def _python() -> Finding:
    ok = sys.version_info >= (3, 11)
    advice = ("install Python 3.11 or newer", "请安装 Python 3.11 或更新版本")
    return Finding(("Python", "Python"), ok, platform.python_version(), advice)


def _cores() -> Finding:
    affinity = getattr(os, "sched_getaffinity", None)
    usable = len(affinity(0)) if affinity else os.cpu_count() or 1
    return Finding(("CPU cores usable", "可用 CPU 核"), True, f"{usable} ({platform.machine()}, {platform.system()})")


def _memory() -> Finding:
    name = ("free memory", "可用内存")
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free, total = (int(lines[key].split()[0]) * 1024 for key in ("MemAvailable", "MemTotal"))
    except (OSError, KeyError, ValueError):
        return Finding(name, True, "not stated by this system")
    advice = ("the bookshop recipe needs about 6 GB: close other programs", "书店示例约需 6 GB:请关闭其他程序")
    return Finding(name, free >= 6e9, f"{free / 1e9:.1f} of {total / 1e9:.1f} GB", advice)


def _instructions() -> Finding:
    name = ("vector instructions", "向量指令")
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return Finding(name, True, "not stated by this system")
    line = next((row for row in text.splitlines() if row.startswith(("flags", "Features"))), "")
    known = ("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "asimd", "sve")
    have = [flag for flag in known if flag in line.split()]
    return Finding(
        name,
        bool({"avx2", "asimd"} & set(have)),
        ", ".join(have) or "none known",
        ("everything works, several times slower", "可以运行,但会慢数倍"),
    )


def _packages() -> Iterator[Finding]:
    """The optional packages by extra; looked up, not imported."""
    extras = (
        ("torch", "torch", "train,serve"),
        ("safetensors", "safetensors", "train,serve"),
        ("tokenizers", "tokenizers", "train,serve"),
        ("fastapi", "fastapi", "serve"),
        ("uvicorn", "uvicorn", "serve"),
        ("resiliparse", "resiliparse", "data"),
        ("bm25s", "bm25s", "agent"),
    )
    for module, package, extra in extras:
        there = importlib.util.find_spec(module) is not None
        found = "not installed"
        if there:
            try:
                found = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                found = "installed"
        line = f"pip install 'riverrun[{extra}]'"
        label = f"package {package}", f"软件包 {package}"
        yield Finding(label, there, found, (line, line))


def _chromium() -> Finding:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome", "firefox")
    path = next((found for name in names if (found := shutil.which(name))), "")
    advice = (
        "only needed to open reports here and for browser tests: apt-get install chromium",
        "仅在本机打开报告和浏览器测试时需要:apt-get install chromium",
    )
    return Finding(("browser", "浏览器"), bool(path), path or "not found", advice)


def _namespaces() -> Finding:
    """Tried, not read from a setting: containers and security modules may forbid what the setting allows."""
    name = ("user namespaces", "用户命名空间")
    advice = (
        "code written by a model then runs with process limits only, not isolated",
        "模型生成的代码将只有进程级限制,没有隔离",
    )
    unshare = shutil.which("unshare")
    if not unshare:
        return Finding(name, False, "no unshare command to try them with", advice)
    command = [unshare, "--user", "--map-root-user", "true"]
    tried = subprocess.run(command, capture_output=True, timeout=10, check=False)
    return Finding(name, tried.returncode == 0, "work" if tried.returncode == 0 else "forbidden here", advice)


def _postgresql() -> Finding:
    path = shutil.which("postgres") or shutil.which("psql") or ""
    if not path:
        servers = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
        path = str(servers[-1]) if servers else ""
    advice = (
        "not needed: the recipes use SQLite, servers are reached over the network",
        "非必需:示例使用 SQLite,服务器通过网络访问",
    )
    return Finding(("PostgreSQL", "PostgreSQL"), bool(path), path or "not found", advice)


def _cache() -> Finding:
    name = ("cache folder", "缓存目录")
    advice = ("set RIVERRUN_HOME to a folder you may write to", "请把 RIVERRUN_HOME 设为可写目录")
    root = _try(_store_root)
    if not isinstance(root, Path):
        return Finding(name, False, str(root), advice)
    existing = next(path for path in (root, *root.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            free = shutil.disk_usage(existing).free
    except OSError as error:
        return Finding(name, False, f"{root}: {error.strerror}", advice)
    return Finding(name, True, f"{root} writable, {free / 1e9:.0f} GB free")


def _store_root() -> Path:
    from riverrun.hub.store import Store

    return Path(Store().root)


def _model() -> Finding:
    name = ("model smollm2-135m-instruct", "模型 smollm2-135m-instruct")
    advice = (
        "fetched by the first run, or now by: riverrun hub get smollm2-135m-instruct",
        "首次运行时自动获取,或现在执行:riverrun hub get smollm2-135m-instruct",
    )

    def find() -> str:
        from riverrun.hub.catalog import get_card
        from riverrun.hub.store import Store

        path = Store().find(get_card("smollm2-135m-instruct"))
        return str(path) if path else ""

    found = _try(find)
    return Finding(name, bool(found) and not isinstance(found, RiverrunError), str(found or "not fetched yet"), advice)


def _try(look: Callable[[], object]) -> object:
    """The value, or the error that a user may meet."""
    try:
        return look()
    except RiverrunError as error:
        return error
