"""For all tests: what a skip may say, that none is allowed with RIVERRUN_REQUIRE=all, and the model of the recipes."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.live_servers import mariadb as mariadb
from tests.live_servers import postgres as postgres

# One thread for products of small tensors: spinning threads of several processes on few cores cost 10 times the time.
# Set before torch is imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SKIP = "not run here: "
Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def _judge(report: Report) -> Report:
    """A skip becomes a failure where everything is required, and where it does not say what was missing."""
    if report.outcome != "skipped" or hasattr(report, "wasxfail"):
        return report
    why = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
    why = why.removeprefix("Skipped: ")
    if os.environ.get("RIVERRUN_REQUIRE") == "all":
        report.outcome, report.longrepr = "failed", f"RIVERRUN_REQUIRE=all allows no skip; {why}"
    elif not why.startswith(SKIP):
        report.outcome, report.longrepr = "failed", f"a skip says '{SKIP}WHAT IS MISSING', this one says '{why}'"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _judge((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _judge((yield))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The GGUF file of smollm2-135m-instruct in the store; fetched (98 MB) only with RIVERRUN_REQUIRE=all."""
    from riverrun.hub.catalog import get_card
    from riverrun.hub.store import Store

    card, store = get_card("smollm2-135m-instruct"), Store()
    if path := store.find(card):
        return path
    if os.environ.get("RIVERRUN_REQUIRE") == "all":
        return store.fetch(card)
    pytest.skip(f"{SKIP}the model is not in the store (riverrun hub get {card.name})")
