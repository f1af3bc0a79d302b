"""A run's folder as data and as a page: interrupted runs, one step, numbers that are not finite, missing fields."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from riverrun.base.errors import InputError
from riverrun.chain.report import build_report
from riverrun.cli.main import app
from riverrun.train.compare import compare
from riverrun.train.history import History, smooth
from riverrun.train.log import TrainLog
from riverrun.train.page import curves, training_page, write_page
from riverrun.train.recipe import TrainConfig
from riverrun.train.run import train_recipe
from riverrun.web.page import Both
from tests.tiny_model import write_rows, write_tiny

EVIL = "<script>alert(1)</script> & \"'"


def step(number: int, **values: Any) -> dict[str, Any]:
    usual = {"loss": 3.0 / number, "grad_norm": 1.0, "lr": 0.1, "tokens": 100, "label_tokens": 40, "seconds": 0.5}
    rates = {"tokens_per_second": 200.0, "label_tokens_per_second": 80.0, "padded_share": 0.1, "mfu": 0.5}
    sizes = {"resident_bytes": 9e8, "peak_bytes": 1_000_000_000, "skipped": 0}
    return {"event": "step", "step": number, **usual, **rates, **sizes, **values}


def write(folder: Path, lines: list[Any], **files: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (folder / "train.jsonl").write_text(text, encoding="utf-8")
    for name, value in files.items():
        if name == "resolved":
            (folder / "resolved.yaml").write_text(yaml.safe_dump(value), encoding="utf-8")
        else:
            (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


class Checker(HTMLParser):
    """Fails on tags that do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        if tag not in {"meta", "link", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(run: History) -> str:
    html = training_page(run)
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert checker.open == []
    assert checker.scripts == 1
    return html


def test_a_run_that_went_back_to_a_checkpoint_counts_each_step_once(tmp_path: Path) -> None:
    lines = [step(n) for n in range(1, 8)] + [{"event": "eval", "step": 6, "name": "v", "loss": 9.0}]
    lines += [step(n, loss=0.5) for n in range(5, 11)] + ['{"event": "step", "st']
    run = History.open(write(tmp_path, lines))
    assert list(run.steps) == list(range(1, 11))
    assert run.resumes == [4]
    assert run.column("loss")[3:5] == [0.75, 0.5]
    assert run.evaluations("loss") == {}
    assert run.cut_lines == 1
    assert run.total("tokens") == 1000
    assert run.rate("tokens") == 200.0
    points = run.points("loss")
    assert math.isnan(points[4][1])
    assert [x for x, _ in points] == [1, 2, 3, 4, 4, 5, 6, 7, 8, 9, 10]
    html = checked(run)
    assert "continued behind step 4" in html
    assert "not finished" in html


def test_resumes_are_found_by_beginnings_and_by_a_lower_peak(tmp_path: Path) -> None:
    begun = [{"event": "begin", "step": 0}, step(1), step(2), {"event": "begin", "step": 2}, step(3)]
    assert History.open(write(tmp_path / "a", begun)).resumes == [2]
    fell = [step(1, peak_bytes=500), step(2, peak_bytes=600), step(3, peak_bytes=400), step(4, peak_bytes=450)]
    run = History.open(write(tmp_path / "b", fell))
    assert run.resumes == [2]
    assert run.peak_bytes == 600
    assert History.open(write(tmp_path / "c", [step(1), step(2), step(3)])).resumes == []


def test_the_log_itself_says_where_it_began(tmp_path: Path) -> None:
    log = TrainLog(tmp_path / "train.jsonl")
    log.opening.append(("memory", {"name": "process", "bytes": 7}))
    log.begin(0)
    for number in (1, 2, 3):
        log.write("step", number, {"loss": float("nan") if number == 2 else 1.0})
    log.begin(2)
    log.write("step", 3, {"loss": 0.5})
    run = History.open(tmp_path)
    assert (list(run.steps), run.resumes, run.bad) == ([1, 2, 3], [2], [2])
    assert run.memory()[0].measured == 7


def test_missing_steps_break_the_curve_and_sparse_logs_do_not(tmp_path: Path) -> None:
    gap = History.open(write(tmp_path / "gap", [step(1), step(2), step(9), step(10)]))
    assert [x for x, y in gap.points("loss") if math.isnan(y)] == [2.0]
    sparse = History.open(write(tmp_path / "sparse", [step(10), step(20), step(30)]))
    assert not any(math.isnan(y) for _, y in sparse.points("loss"))


def test_numbers_that_are_not_finite_are_named_and_not_drawn(tmp_path: Path) -> None:
    bad = [step(2, loss=float("nan")), step(3, grad_norm=float("inf")), step(4, loss="NaN"), step(5, loss=None)]
    run = History.open(write(tmp_path, [step(1), *bad, step(6, skipped=4), "[1]", "null", '{"step": true}', "x"]))
    assert run.bad == [2, 3, 4, 5]
    assert run.cut_lines == 4
    html = checked(run)
    assert "4 steps without finite loss or gradient (2, 3, 4, 5), 4 skipped." in html
    assert html.count('class="bad-mark"') >= 2
    assert smooth(run.column("loss"))[-1] < 3.0


def test_one_step_none_and_a_folder_without_a_log(tmp_path: Path) -> None:
    assert ">1</" in checked(History.open(write(tmp_path / "one", [step(1)])))
    assert "No step is finished yet" in checked(History.open(write(tmp_path / "none", [])))
    assert "0.1" in checked(History.open(write(tmp_path / "few", [{"event": "step", "step": 1, "lr": 0.1}])))
    with pytest.raises(InputError, match=r"has no train\.jsonl: give the folder"):
        History.open(tmp_path / "nothing")


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**400) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
NAMES = st.sampled_from(
    ["event", "step", "loss", "grad_norm", "name", "text", "prompt", "bytes", "bits_per_byte", "mfu", "bad", "kept"]
)


@settings(derandomize=True, max_examples=60, deadline=None, phases=[Phase.generate])
@given(
    st.lists(
        st.dictionaries(NAMES, anything, max_size=6).map(lambda d: {"step": 3} | d)
        | st.builds(
            lambda event, number, more: {**more, "event": event, "step": number},
            st.sampled_from(["step", "eval", "sample", "checkpoint", "begin", "memory", "rows", "other"]),
            st.integers(0, 9),
            st.dictionaries(NAMES, anything, max_size=5),
        ),
        max_size=12,
    ),
    st.dictionaries(st.sampled_from(["dropped", "items", "memory", "status", "peak_bytes", "notes"]), anything),
    st.dictionaries(st.sampled_from(["model", "data", "optimizer", "run", "method", "objective"]), anything),
)
def test_any_log_makes_a_page(
    tmp_path_factory: pytest.TempPathFactory, lines: list[Any], stored: dict[str, Any], recipe: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "resolved.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    checked(History.open(write(folder, lines, plan=stored, result=stored)))
    compare([folder])


def test_the_page_says_what_the_run_holds(tmp_path: Path) -> None:
    lines: list[Any] = [step(n, accuracy=n / 40) for n in range(1, 31)]
    for at in (10, 20, 30):
        lines.append({"event": "eval", "step": at, "name": "held", "loss": 30 / at, "bits_per_byte": 20 / at})
        lines += [{"event": "sample", "step": at, "prompt": EVIL, "text": f"从前有{at}座山"}]
        lines.append({"event": "checkpoint", "step": at, "seconds": 0.25})
    lines.append({"event": "memory", "step": 0, "name": "weights", "bytes": 510_000_000})
    items = [{"name": "weights", "bytes": 500_000_000, "formula": "N"}, {"name": "head", "bytes": 450_000_000}]
    recipe = TrainConfig.model_validate(
        {"model": "base", "data": {"train": "r.jsonl"}, "method": "lora", "optimizer": {"learning_rate": 0.5}}
    ).model_dump(mode="json")
    result = {
        "status": "done",
        "dropped": [["r:1", "90 tokens, the limit is 64"], ["r:2", "80 tokens, the limit is 64"]],
    }
    run = History.open(write(tmp_path, lines, plan={"items": items}, result=result, resolved=recipe))
    (tmp_path / "bad_rows.jsonl").write_text("")
    html = checked(run)
    for wanted in (
        *("loss, smoothed", "损失(平滑)", "accuracy", "Bits per byte of validation", "best 0.6667 at step 30"),
        *(
            "+5.3 %",
            "predicted 0.95\u00a0GB",
            "0.51\u00a0GB",
            "arXiv:2204.02311",
            "从前有10座山",
            "N tokens, the limit is N",
        ),
        *("optimizer.learning_rate", "0.25\u00a0s", "Training: base, sft, lora, adamw"),
    ):
        assert wanted in html, wanted
    assert "alert(1)&lt;/script&gt;" in html
    assert "<td>optimizer.clip_norm" not in html  # as by default
    assert run.left_out() == {"N tokens, the limit is N": 2}


def test_quarantined_rows_are_listed_with_file_and_line(tmp_path: Path) -> None:
    folder = write(tmp_path / "out", [step(1)])
    (folder / "data").mkdir()
    row = {"file": "/x/a.jsonl", "line": 7, "reason": "no_assistant", "detail": EVIL}
    (folder / "data" / "bad_rows.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "line": 9}) + "\n")
    run = History.open(folder)
    assert run.left_out() == {"no_assistant": 2}
    assert "a.jsonl:7" in checked(run)


def test_smoothing_has_no_bias_and_weighs() -> None:
    assert smooth([5.0] * 30) == pytest.approx([5.0] * 30)
    assert smooth([math.nan, 2.0, math.inf, 2.0]) == pytest.approx([math.nan, 2.0, 2.0, 2.0], nan_ok=True)
    assert smooth([100.0, 10.0], [1.0, 9.0], span=1e9)[1] == pytest.approx(19.0)  # tokens over seconds, not 55
    assert smooth([]) == []


def test_the_final_loss_counts_each_step_by_its_label_tokens(tmp_path: Path) -> None:
    steps = [step(n, loss=1.0, label_tokens=100) for n in range(1, 5)] + [step(5, loss=9.0, label_tokens=1)]
    final = History.open(write(tmp_path / "a", steps)).final_loss()
    assert final == pytest.approx(1 + 8 * 1 / (100 * (0.8 + 0.8**2 + 0.8**3 + 0.8**4) + 1))
    assert History.open(write(tmp_path / "b", [])).final_loss() is None


def test_runs_side_by_side_show_only_what_differs(tmp_path: Path) -> None:
    for name, rate, zh in (("a", 0.1, 2.0), ("b", 0.2, 1.0)):
        lines = [step(1), step(2), {"event": "eval", "step": 2, "name": "zh", "bits_per_byte": zh}]
        recipe = {"optimizer": {"learning_rate": rate, "name": "adamw"}, "run": {"seed": 0}}
        write(tmp_path / "runs" / name, lines, resolved=recipe, result={"status": "done"} if name == "a" else {})
    write(tmp_path / "bare", [])
    heads, first, second = compare([tmp_path / "runs"]).splitlines()
    assert heads.split()[:4] == ["run", "optimizer.learning_rate", "steps", "loss"]
    assert heads.endswith("state")
    assert first.split()[1:] == ["0.1", "2", "2.167", "2", "200", "1.00", "done"]
    assert second.split()[1:] == ["0.2", "2", "2.167", "1", "200", "1.00", "not", "finished"]
    assert "–" in compare([tmp_path / "runs" / "a", tmp_path / "bare"])
    assert "词元/秒" in compare([tmp_path / "bare"], chinese=True)
    with pytest.raises(InputError, match="holds no run"):
        compare([tmp_path / "runs" / "a" / "x"])


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "out", [step(1), step(2)])
    for lang, wanted in (("zh", 'data-pick="zh"'), ("en", 'data-pick="en"'), ("", 'data-pick="auto"')):
        monkeypatch.setenv("RIVERRUN_LANG", lang)
        done = CliRunner().invoke(app, ["train", "report", str(folder)])
        assert done.exit_code == 0, done.output
        assert Path(done.stdout.strip()) == folder.resolve() / "report.html"
        assert wanted in (folder / "report.html").read_text(encoding="utf-8")
    listed = CliRunner().invoke(app, ["train", "list", str(folder), str(tmp_path)])
    assert listed.exit_code == 0
    assert len(listed.stdout.splitlines()) == 2
    assert CliRunner().invoke(app, ["train", "report", str(tmp_path)]).exit_code == 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run that was stopped once, with everything that a recipe can measure."""
    place = tmp_path_factory.mktemp("trained")
    model = write_tiny(place / "m")
    rows = write_rows(place / "rows.jsonl", 24)
    recipe = {
        "model": str(model),
        "data": {"train": str(rows), "validation": {"path": str(rows), "name": "same"}, "max_tokens": 200},
        "method": {"name": "lora", "rank": 4},
        "batch": {"micro_tokens": 256, "global_tokens": 256},
        "run": {"length": "6 steps", "eval_every": "2 steps", "save_every": "2 steps", "prompts": ["How", "你好"]}
        | {"prompt_tokens": 4, "dtype": "float32"},
    }
    out = place / "out"
    (out / "work").mkdir(parents=True)
    (out / "work" / "stop").touch()
    assert train_recipe(TrainConfig.model_validate(recipe), out).status == "stopped"
    assert train_recipe(TrainConfig.model_validate(recipe), out).status == "done"
    return out


def test_the_page_of_a_real_run(trained: Path) -> None:
    run = History.open(trained)
    assert list(run.steps) == [1, 2, 3, 4, 5, 6]
    assert (run.resumes, run.bad, run.cut_lines, run.status) == ([1], [], 0, "done")
    assert set(run.evaluations("bits_per_byte")) == {"same"}
    assert {line["prompt"] for line in run.events["sample"]} == {"How", "你好"}
    assert [line["step"] for line in run.events["checkpoint"]] == [1, 2, 4]
    assert {line.name for line in run.memory()} == {"process", "model"}
    html = checked(run)
    assert "data.max_tokens" in html
    assert "<td>data.train.0.format" not in html


def test_the_chains_report_shows_the_fine_tune(tmp_path: Path) -> None:
    (tmp_path / "finetune").mkdir()
    (tmp_path / "summary.json").write_text('{"name": "x", "finetune": {"tokens": 5, "label_tokens": 2}}')
    rows = [{"step": n, "loss": 2.0 / n, "lr": 0.1, "grad_norm": 1.0, "label_tokens": 9} for n in range(1, 40)]
    (tmp_path / "finetune" / "loss.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = History.open(tmp_path / "finetune")
    assert run.status == "done"
    html = build_report(tmp_path)
    title = Both("Loss on assistant tokens", "助手词元上的损失")
    assert str(curves(run, loss_title=title)) in html
    assert "Gradient norm before clipping" in html
    (tmp_path / "finetune" / "loss.jsonl").write_text("")
    assert "No training" in build_report(tmp_path)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium; without it the test is skipped, or fails when RIVERRUN_REQUIRE=all forbids skipping."""
    found = next((shutil.which(n) for n in ("chromium", "chromium-browser", "google-chrome") if shutil.which(n)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        found = None
    if found is None:
        if os.environ.get("RIVERRUN_REQUIRE") == "all":
            pytest.fail("Chromium and playwright are required (RIVERRUN_REQUIRE=all) and not here")
        pytest.skip("not run here: Chromium and playwright")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    with sync_playwright() as play:
        running = play.chromium.launch(executable_path=found, args=flags)
        yield running
        running.close()


@pytest.mark.parametrize(("width", "scheme", "lang"), [(400, "dark", "zh-CN"), (1200, "light", "en-US")])
def test_in_a_browser_nothing_fails_and_nothing_is_wider_than_the_window(
    browser: Any, trained: Path, width: int, scheme: str, lang: str
) -> None:
    path = write_page(trained)
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, locale=lang)
    tab = context.new_page()
    problems: list[str] = []
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    tab.on("request", lambda asked: None if asked.url.startswith(("file:", "data:")) else problems.append(asked.url))
    tab.goto(path.as_uri())
    assert tab.locator("svg.chart").count() >= 8
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert tab.locator("h2").first.inner_text() == ("结果" if lang == "zh-CN" else "Result")
    tab.click("#switch-language")
    assert tab.locator("h2").first.inner_text() == ("Result" if lang == "zh-CN" else "结果")
    context.close()
    assert problems == []
