"""The chat page and the page shell in a real Chromium. Skipped without one, unless RIVERRUN_REQUIRE=all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from http_models import PATIENCE_SECONDS, STEPS, FailingModel, GateModel, PiecesModel, require_or_skip

from riverrun.base.errors import CapacityError
from riverrun.base.fakes import FakeModel
from riverrun.base.protocols import Delta, Request
from riverrun.base.types import SamplingParams, ToolCall, Usage
from riverrun.serve.http.app import make_app
from riverrun.serve.http.server import BackgroundServer
from riverrun.serve.llm import LLM
from riverrun.serve.page import chat_page
from riverrun.web.charts import Bar, BarGroup, FunnelStep, Node, Series, bar_chart, dag, funnel, line_chart
from riverrun.web.page import Both, page, paragraph, section, table
from tests.tiny_model import write_tiny

FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync"
DONE = ".turn.assistant:not(.busy)"
EVIL = "<img src=x onerror=\"document.title='broken'\"> `<b>code</b>`\n\n```html\n<script>x</script>\n```"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = next((shutil.which(n) for n in ("chromium", "chromium-browser", "google-chrome") if shutil.which(n)), None)
    if found is None:
        require_or_skip("Chromium", None)
    playwright = require_or_skip("playwright", "playwright.sync_api")
    with playwright.sync_playwright() as play:
        running = play.chromium.launch(executable_path=found, args=FLAGS.split())
        yield running
        running.close()


class Tab:
    """A page in a fresh context that must neither fail nor ask another host for anything."""

    def __init__(self, browser: Any, url: str, *, width: int = 1000, dark: bool = False, lang: str = "en-US") -> None:
        scheme = "dark" if dark else "light"
        self.context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, locale=lang)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE_SECONDS * 1000)
        self.problems: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self._only(request.url, url.removesuffix("/monitor")))
        self.page.goto(url)

    def _only(self, asked: str, own: str) -> None:
        if not asked.startswith((own, "data:")):
            self.problems.append(f"asked {asked}")

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, *exception: object) -> None:
        self.context.close()
        assert self.problems == []


def ready(tab: Any) -> None:
    tab.wait_for_selector("#model:enabled")


def ask(tab: Any, text: str) -> None:
    """Type a message and send it with the Enter key."""
    tab.fill("#input", text)
    tab.keyboard.press("Enter")


def shown(tab: Any, selector: str) -> str:
    return str(tab.locator(selector).inner_text())


def test_a_conversation_with_steps(browser: Any, server: BackgroundServer, models: dict[str, FakeModel]) -> None:
    models.clear()
    agent = models["agent"] = PiecesModel(["It costs **12.5** dollars.", "\n\n", EVIL], steps=STEPS)
    models["other"] = FakeModel(["from the other"])
    with Tab(browser, server.url) as tab:
        ready(tab)
        ask(tab, "How much <b>is</b> it?")
        tab.wait_for_selector(DONE)
        assert shown(tab, ".turn.user") == "How much <b>is</b> it?"
        # everything the model says is text
        assert "<img src=x" in shown(tab, ".answer")
        assert shown(tab, ".answer strong") == "12.5"
        assert shown(tab, ".answer p code") == "<b>code</b>"
        assert shown(tab, ".answer pre") == "<script>x</script>"
        assert tab.locator(".turn img, .turn b, .turn script").count() == 0
        # tool calls are folded, and open to the query and its rows
        assert tab.locator(".step details[open]").count() == 0
        assert not tab.locator(".step table").is_visible()
        tab.locator(".step summary").first.click()
        assert shown(tab, ".step:first-child summary") == "query_database · 2 rows"
        assert shown(tab, ".step:first-child pre") == "SELECT price FROM books"
        assert tab.locator(".step table td").all_inner_texts() == ["12.5", "–"]
        assert "error" in shown(tab, ".step:nth-child(2) summary")
        assert "5 tokens" in shown(tab, ".figures")
        # the history goes along; another model can be chosen; a new chat starts empty
        ask(tab, "And then?")
        tab.locator(DONE).nth(1).wait_for()
        assert [m.role for m in agent.requests[-1].messages] == ["user", "assistant", "user"]
        assert agent.requests[-1].messages[1].text == "".join(agent.pieces)
        tab.select_option("#model", "other")
        tab.click("#new-chat")
        assert tab.locator(".turn").count() == 0
        assert tab.locator("#welcome").is_visible()
        tab.locator("#settings summary").click()
        tab.fill("#temperature", "0.5")
        tab.fill("#max-tokens", "33")
        ask(tab, "Hello")
        tab.wait_for_selector(DONE)
        assert shown(tab, ".answer") == "from the other"
        asked = models["other"].requests[-1]
        assert [m.text for m in asked.messages] == ["Hello"]
        assert (asked.params.temperature, asked.params.max_tokens) == (0.5, 33)
        tab.reload()
        ready(tab)
        assert tab.input_value("#model") == "other"


def test_edit_again_settings_and_the_list(browser: Any, server: BackgroundServer, models: dict[str, FakeModel]) -> None:
    models.clear()
    model = models["m"] = FakeModel(lambda request: f"about {request.messages[-1].text}", name="m")
    with Tab(browser, server.url) as tab:
        ready(tab)
        tab.locator("#settings summary").click()
        for name, value in {"system": "Be brief.", "top-p": "0.9", "top-k": "7", "seed": "3"}.items():
            tab.fill(f"#{name}", value)
        tab.fill("#repetition-penalty", "1.1")
        for number, text in enumerate(("first", "second")):
            ask(tab, text)
            tab.locator(DONE).nth(number).wait_for()
        params = model.requests[-1].params
        assert (params.top_p, params.top_k, params.seed, params.repetition_penalty) == (0.9, 7, 3, 1.1)
        assert model.requests[-1].messages[0].text == "Be brief."
        # an edit takes away what followed; Escape brings it back
        tab.locator(".entry.user button", has_text="Edit").first.click()
        assert tab.input_value("#input") == "first"
        assert tab.locator(".turn").count() == 0
        tab.keyboard.press("Escape")
        assert tab.locator(".turn").count() == 4
        assert tab.input_value("#input") == ""
        tab.locator(".entry.user button", has_text="Edit").nth(1).click()
        tab.fill("#input", "third")
        tab.keyboard.press("Enter")
        tab.locator(".answer", has_text="about third").wait_for()
        assert [m.text for m in model.requests[-1].messages] == ["Be brief.", "first", "about first", "third"]
        # an answer anew, to the same conversation
        tab.wait_for_selector(DONE)
        tab.locator(".entry.assistant button", has_text="Again").last.click()
        tab.wait_for_function("() => document.querySelectorAll('.turn.assistant:not(.busy)').length === 2")
        assert [m.text for m in model.requests[-1].messages] == ["Be brief.", "first", "about first", "third"]
        assert len(model.requests) == 4
        # conversations are listed, opened again after a reload, and deleted
        tab.click("#new-chat")
        ask(tab, "<i>other</i>")
        tab.wait_for_selector(DONE)
        tab.reload()
        ready(tab)
        tab.locator("#chats summary").click()
        assert tab.locator("#chat-list .open").all_inner_texts() == ["<i>other</i>", "first"]
        tab.locator("#chat-list .open").nth(1).click()
        assert tab.locator(".turn").all_inner_texts()[0] == "first"
        assert tab.locator(".answer").nth(1).inner_text() == "about third"
        assert "tokens" in shown(tab, ".entry:last-child .figures")
        tab.locator("#chats summary").click()
        tab.locator("#chat-list button", has_text="Delete").nth(1).click()
        assert tab.locator("#chat-list .open").all_inner_texts() == ["<i>other</i>"]
        assert tab.locator(".turn").count() == 0


def test_thoughts_and_calls_are_folded(browser: Any, server: BackgroundServer, models: dict[str, FakeModel]) -> None:
    models.clear()
    models["m"] = ThinkingModel()  # type: ignore[assignment]
    with Tab(browser, server.url) as tab:
        ready(tab)
        ask(tab, "well?")
        tab.wait_for_selector(DONE)
        assert shown(tab, ".answer") == "Two."
        assert tab.locator(".turn details[open]").count() == 0
        assert not tab.locator(".thought p").is_visible()
        tab.locator(".thought summary").click()
        assert shown(tab, ".thought p") == "One and <b>one</b>."
        tab.locator(".step summary").click()
        assert shown(tab, ".step summary") == "add"
        assert '"x": 1' in shown(tab, ".step pre")


class ThinkingModel(FakeModel):
    """Thinks, answers, calls."""

    def stream(self, request: Request) -> Iterator[Delta]:
        yield Delta(reasoning="One and ")
        yield Delta(reasoning="<b>one</b>.")
        yield Delta(text="Two.")
        yield Delta(tool_calls=(ToolCall("add", {"x": 1}, "call_0"),))
        yield Delta(finish_reason="tool_calls", usage=Usage(3, 4))


@pytest.mark.parametrize(("width", "dark"), [(360, True), (1280, False)])
def test_the_monitor_shows_what_a_model_does(browser: Any, tmp_path: Path, width: int, dark: bool) -> None:
    with (
        LLM(write_tiny(tmp_path), dtype="float32", slots=2, name="tiny") as model,
        BackgroundServer(make_app({"tiny": model, "fake": FakeModel()}, api_keys=["k"])) as server,
        Tab(browser, f"{server.url}/monitor", width=width, dark=dark) as tab,
    ):
        tab.wait_for_selector(".notice")
        assert "needs an API key" in shown(tab, ".notice")
        tab.evaluate("sessionStorage.setItem('riverrun.key', 'k')")
        tab.wait_for_selector("dd[data-name=running]")
        assert tab.locator(".notice").count() == 0
        assert shown(tab, "h2") == "tiny"
        asked = [Request(prompt=f"The sea {n}", params=SamplingParams(max_tokens=40)) for n in range(4)]
        done = model.generate(asked)
        count = sum(each.usage.completion_tokens for each in done)
        tab.wait_for_function(
            "(wanted) => document.querySelector('dd[data-name=generated]').textContent === wanted", arg=f"{count:,}"
        )
        assert shown(tab, "dd[data-name=running]") == "0"
        assert shown(tab, "dd[data-name=first]").endswith(" s")
        assert tab.locator("svg.chart path.curve").count() == 6
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_stop_keeps_what_came_and_aborts_the_model(
    browser: Any, server: BackgroundServer, models: dict[str, FakeModel]
) -> None:
    models.clear()
    gate = models["gate"] = GateModel()
    with Tab(browser, server.url) as tab:
        ready(tab)
        ask(tab, "go on")
        assert tab.locator("#send").is_hidden()
        gate.permits.release(2)
        tab.locator(".answer", has_text="xx").wait_for()
        tab.click("#stop")
        tab.wait_for_selector(DONE)
        assert gate.wait_closed()
        assert shown(tab, ".answer").startswith("xx")
        assert "stopped" in shown(tab, ".figures")
        assert tab.locator("#send").is_visible()


def test_a_failure_is_told_and_the_text_is_given_back(
    browser: Any, server: BackgroundServer, models: dict[str, FakeModel]
) -> None:
    models.clear()
    models["full"] = FailingModel(CapacityError("9000 tokens, the context is 8192: send less"))
    with Tab(browser, server.url) as tab:
        ready(tab)
        ask(tab, "a long text")
        tab.wait_for_selector(".notice")
        assert shown(tab, ".notice") == "9000 tokens, the context is 8192: send less"
        assert tab.input_value("#input") == "a long text"
        assert tab.locator(".turn").count() == 0
        models["full"] = FakeModel(["fits"])  # type: ignore[assignment]
        tab.click("#send")
        tab.wait_for_selector(DONE)
        assert tab.locator(".notice").count() == 0


def test_a_broken_stream_keeps_the_part_that_came(
    browser: Any, server: BackgroundServer, models: dict[str, FakeModel]
) -> None:
    models.clear()
    models["late"] = FailingModel(CapacityError("the cache is full"), after=3)
    with Tab(browser, server.url) as tab:
        ready(tab)
        ask(tab, "hi")
        tab.wait_for_selector(".notice")
        assert shown(tab, ".notice") == "the cache is full"
        assert shown(tab, ".answer") == "xxx"


def test_the_key_is_asked_for_and_kept_in_the_tab_only(browser: Any) -> None:
    with (
        BackgroundServer(make_app({"m": FakeModel(["inside"])}, api_keys=["the-key"], title="Shop")) as server,
        Tab(browser, server.url) as tab,
    ):
        tab.wait_for_selector(".notice")
        assert "needs an API key" in shown(tab, ".notice")
        assert tab.locator("#key").is_visible()
        tab.fill("#key", "the-key")
        tab.locator("#key").press("Tab")
        ready(tab)
        assert tab.locator(".notice").count() == 0
        tab.reload()
        ready(tab)
        ask(tab, "hi")
        tab.wait_for_selector(DONE)
        assert shown(tab, ".answer") == "inside"
        assert "the-key" not in tab.evaluate("JSON.stringify(localStorage)")
        assert tab.title() == "Shop"


def test_an_enter_that_ends_an_input_method_does_not_send(
    browser: Any, server: BackgroundServer, models: dict[str, FakeModel]
) -> None:
    models.clear()
    models["m"] = FakeModel()
    with Tab(browser, server.url) as tab:
        ready(tab)
        tab.fill("#input", "你好")
        press = "new KeyboardEvent('keydown', {key: 'Enter', isComposing: %s, shiftKey: %s, cancelable: true})"
        for flags in (("true", "false"), ("false", "true")):
            tab.evaluate(f"document.getElementById('input').dispatchEvent({press % flags})")
        assert tab.locator(".turn").count() == 0
        tab.keyboard.press("Enter")
        tab.wait_for_selector(DONE)


@pytest.mark.parametrize(("width", "dark", "lang"), [(360, True, "zh-CN"), (1280, False, "en-GB")])
def test_language_theme_and_width(
    browser: Any, server: BackgroundServer, models: dict[str, FakeModel], width: int, dark: bool, lang: str
) -> None:
    models.clear()
    models["a-model-with-quite-a-long-name-for-a-narrow-window"] = PiecesModel(["word" * 60], steps=STEPS)
    english = lang.startswith("en")
    with Tab(browser, server.url, width=width, dark=dark, lang=lang) as tab:
        ready(tab)
        assert shown(tab, "#send") == ("Send" if english else "发送")
        assert tab.get_attribute("#input", "placeholder") == ("Write a message" if english else "输入消息")
        assert _brightness(tab) < 60 if dark else _brightness(tab) > 200
        ask(tab, "unbroken" * 30)
        tab.wait_for_selector(DONE)
        tab.locator(".step summary").first.click()
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert tab.evaluate("document.getElementById('log').scrollWidth <= document.getElementById('log').clientWidth")
        tab.click("#switch-language")
        tab.click("#switch-theme")
        assert shown(tab, "#send") == ("发送" if english else "Send")
        tab.reload()  # both choices are kept
        assert shown(tab, "#send") == ("发送" if english else "Send")
        assert _brightness(tab) > 200 if dark else _brightness(tab) < 60


def _brightness(tab: Any) -> float:
    colour = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(float(x) for x in colour.removeprefix("rgb(").removesuffix(")").split(",")) / 3


def test_a_report_with_every_chart(browser: Any, tmp_path: Path) -> None:
    title = Both("Report", "报告")
    html = page(
        title,
        section(
            "Charts",
            line_chart([Series("a", [(0, 1), (1, 3)]), Series("b", [(0, 2), (1, 1)])], title="Loss", x_label="step"),
            bar_chart([BarGroup(title, [Bar("before", 0.5, 0.4, 0.6)])], title=title, percent=True),
            funnel([FunnelStep("in", 10), FunnelStep("rules", 7, {"short": 3})], title="Funnel"),
            dag([Node("a", title), Node("b", "b")], [("a", "b")], title="Graph"),
            anchor="charts",
        ),
        section("Words", paragraph("x" * 500), table(["n"], [["y" * 300]])),
        navigation=[("charts", "Charts")],
    )
    (tmp_path / "report.html").write_text(html, encoding="utf-8")
    url = (tmp_path / "report.html").as_uri()
    for width, dark in ((390, True), (1200, False)):
        with Tab(browser, url, width=width, dark=dark) as tab:
            assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert shown(tab, "h1") == "Report"
            assert tab.title() == "Report"
            tab.click("#switch-language")
            assert shown(tab, "h1") == "报告"
            assert tab.title() == "报告"
            fills = "[...document.querySelectorAll('svg.chart rect')].map(r => getComputedStyle(r).fill)"
            assert "rgb(0, 0, 0)" not in tab.evaluate(fills)
            assert tab.locator("svg.chart").count() == 4


def test_the_report_is_readable_without_javascript(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(page(Both("Report", "报告"), paragraph(Both("yes", "是"))), encoding="utf-8")
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto((tmp_path / "report.html").as_uri())
    assert shown(tab, "h1") == "Report"
    assert shown(tab, "main") == "yes"
    assert not tab.locator("#switch-theme").is_visible()
    context.close()


def test_the_page_holds_no_model_and_no_address() -> None:
    html = chat_page("<Shop>")
    assert "<Shop>" not in html
    assert "http://" not in html
    assert "https://" not in html
