"""Ways to answer a question about pages: compared on development questions, one of them served.

In every way it is the tuned model that sends a question to the page search; they differ in who words the answer then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from riverrun.agent.ground import Extract, Found, Grounding, PageWriter
from riverrun.agent.tools.search import SearchTool
from riverrun.base.artifacts import write_json
from riverrun.base.progress import Progress
from riverrun.base.protocols import Completion, LanguageModel, Request
from riverrun.base.types import Document, Message, SamplingParams
from riverrun.chain.assistant import Assistant
from riverrun.chain.measure import lines_once, rate_names, watched
from riverrun.chain.spec import AppSpec
from riverrun.chain.stage import Context, read_json, read_jsonl
from riverrun.data.journal import read_documents
from riverrun.evaluate import pageanswers
from riverrun.evaluate.pageanswers import AnswerRecord
from riverrun.evaluate.tooltasks import ToolQuestion

__all__ = [
    "BASE_MODES",
    "MODES",
    "PAGES_FILE",
    "Prompted",
    "base_beside",
    "compare_pages",
    "grounding_of",
    "served_mode",
]

PAGES_FILE = "pages.json"
MODES = ("extract", "prompt", "tuned", "retrieval", "prompt_pages")
"""Cheapest first: no model; no page to read; one more turn of the agent; a second model; all pages in its prompt."""
BASE_MODES = ("retrieval", "prompt_pages")
"""Worded by the model before its tuning."""
PAGES_TOKENS = 3000
"""Most tokens of pages, estimated, that are put into a prompt."""
ANSWER_TOKENS = 96
_TASK = {
    "en": "Answer the question in one or two short sentences, with what the text says.",
    "zh": "请根据所给文字,用一两句话简短地回答问题。",
}
_ALONE = {"en": "Answer the question in one or two short sentences.", "zh": "请用一两句话简短地回答问题。"}
_ASKED = {"en": "{text}\n\nQuestion: {question}", "zh": "{text}\n\n问题:{question}"}


@dataclass(frozen=True)
class Prompted:
    """A PageWriter that asks a model without tools; `text` gives what stands above the question, None for no search
    result to answer from."""

    model: LanguageModel
    language: str
    text: Callable[[Found], str | None]

    def __call__(self, question: str, found: Found, params: SamplingParams) -> Completion:
        (answer,) = self.model.generate([self.request(question, found, params)])
        return answer

    def request(self, question: str, found: Found, params: SamplingParams) -> Request:
        text = self.text(found)
        system = (_TASK if text else _ALONE)[self.language]
        asked = _ASKED[self.language].format(text=text, question=question) if text else question
        messages = (Message.of("system", system), Message.of("user", asked))
        return Request(messages, params=replace(params, max_tokens=min(params.max_tokens, ANSWER_TOKENS)))


def writer_of(
    mode: str, search: Extract, language: str, documents: Sequence[Document], tuned: LanguageModel, base: LanguageModel
) -> PageWriter | None:
    """Who words the answer in a mode; None for the agent's own model."""
    if mode == "tuned":
        return None
    if mode == "extract":
        return search
    if mode == "prompt":
        return Prompted(tuned, language, lambda found: None)
    if mode == "retrieval":
        return Prompted(base, language, lambda found: found.content)
    whole = "\n\n".join(document.text for document in documents)
    return Prompted(base, language, lambda found: whole)


def extract_of(assistant: Assistant) -> Extract:
    """The assistant's page search as a quoter; it quotes nothing where there are no pages."""
    searches = [tool for tool in assistant.tools.values() if isinstance(tool, SearchTool)]
    return Extract(searches[0].extract if searches else lambda question: "")


def grounding_of(
    spec: AppSpec,
    assistant: Assistant,
    mode: str,
    documents: Sequence[Document],
    tuned: LanguageModel,
    base: LanguageModel | None = None,
) -> Grounding | None:
    """How the application's agent ends a run; None where nothing is asked of it."""
    if mode == "tuned" and not spec.agent.grounded:
        return None
    extract = extract_of(assistant)
    writer = writer_of(mode, extract, spec.language, documents, tuned, base or tuned)
    return Grounding(extract, spec.agent.grounded, spec.agent.closing, writer, mode)


def served_mode(run: Path) -> str:
    """The way that the run's comparison chose; "tuned" where none was made."""
    file = run / "evaluate" / PAGES_FILE
    return str(read_json(file)["chosen"]) if file.is_file() else "tuned"


def base_beside(quantized: Path) -> Path | None:
    """The quantised model before its tuning, where it lies beside an adapter in a run's quantize folder."""
    file = quantized / "q4-base-adapter" / "bundle.json"
    return file.parent / read_json(file)["base"] if file.is_file() else None


def compare_pages(
    ctx: Context,
    assistant: Assistant,
    models: Mapping[str, tuple[Path, Path | None]],
    folder: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Answer the development questions in each way, write pages.json; scores by their names in summary.json.

    `models` are (path, adapter) of "base" and "tuned". Nothing is loaded when no question has a fact to be judged by.
    """
    rows = read_jsonl(ctx.folder("data") / "questions_dev.jsonl")
    questions = pageanswers.answerable([ToolQuestion.from_dict(row) for row in rows])
    documents = read_documents(ctx.folder("data") / "kept.jsonl")
    left_out: dict[str, str] = {}
    if (size := _tokens(documents)) > PAGES_TOKENS:
        left_out["prompt_pages"] = f"the pages have about {size} tokens, {PAGES_TOKENS} fit"
    modes = [mode for mode in MODES if mode not in left_out]
    records: dict[str, list[AnswerRecord]] = {mode: [] for mode in modes}
    routed = 0
    if questions:
        routed, records = _ask_all(ctx, assistant, models, questions, documents, modes, folder, progress)
    kept = pageanswers.choose(records, MODES)
    scores: dict[str, Any] = {"pages.chosen": kept.mode, "pages.n": len(questions)}
    for mode in modes if questions else ():
        scores |= rate_names(f"pages.{mode}", pageanswers.score(records[mode]).as_dict())
    if questions:
        scores["pages.routed"] = routed / len(questions)
    over = {mode: comparison.as_dict() for mode, comparison in kept.over.items()}
    found = {"chosen": kept.mode, "why": kept.why, "best": kept.best, "gain_of_best_over": over, "left_out": left_out}
    write_json(folder / PAGES_FILE, found | {"scores": scores})
    progress.say(f"  page answers: {kept.why}")
    return scores


def _ask_all(
    ctx: Context,
    assistant: Assistant,
    models: Mapping[str, tuple[Path, Path | None]],
    questions: Sequence[ToolQuestion],
    documents: Sequence[Document],
    modes: Sequence[str],
    folder: Path,
    progress: Progress,
) -> tuple[int, dict[str, list[AnswerRecord]]]:
    """How many questions reached the search, and the answers of each mode. What did not reach it keeps the agent's
    answer in all modes, as it would be served."""
    spec = ctx.spec
    params = SamplingParams(max_tokens=spec.evaluate.max_tokens)
    found: dict[int, Found] = {}
    answers: dict[str, list[str]] = {}

    def word(mode: str, model: LanguageModel) -> None:
        grounding = grounding_of(spec, assistant, mode, documents, model)
        assert grounding is not None, "only tuned has none"
        assert grounding.writer is not None, "only tuned has none"
        asked = [(questions[index].text, item) for index, item in found.items()]
        if isinstance(grounding.writer, Prompted):
            requests = [grounding.writer.request(text, item, params) for text, item in asked]
            said = [answer.message.text for answer in model.generate(requests)]
        else:
            said = [grounding.writer(text, item, params).message.text for text, item in asked]
        own = list(answers["tuned"])
        for index, (text, item), worded in zip(found, asked, said, strict=True):
            own[index] = grounding.worded(worded, text, item, spec.language)
        answers[mode] = own

    with ExitStack() as stack:
        path, adapter = models["tuned"]
        tuned = stack.enter_context(ctx.model(path, adapter=adapter, name="tuned"))
        with watched(tuned, progress, "page answers: tuned", 3 * len(questions)):
            own = grounding_of(spec, assistant, "tuned", documents, tuned)
            agent = assistant.agent(tuned, name="tuned", limits=spec.agent, grounding=own)
            asked = [Request(messages=(Message.of("user", question.text),), params=params) for question in questions]
            rows = lines_once(folder / "pages_asked.jsonl", lambda: [_row(done) for done in agent.generate(asked)])
            answers["tuned"] = [row["answer"] for row in rows]
            for index, row in enumerate(rows):
                if row["query"]:
                    found[index] = Found(row["query"], tuple(row["pages"]), row["content"])
            word("extract", tuned)
            word("prompt", tuned)
        if models["base"] == models["tuned"]:
            base = tuned
        else:
            stack.close()
            path, adapter = models["base"]
            base = stack.enter_context(ctx.model(path, adapter=adapter, name="base"))
        worded = [mode for mode in BASE_MODES if mode in modes]
        with watched(base, progress, "page answers: base", len(worded) * len(questions)):
            for mode in worded:
                word(mode, base)
    records = {mode: pageanswers.judge(questions, answers[mode]) for mode in modes}
    for mode in modes:
        lines_once(folder / f"pages_{mode}.jsonl", lambda mode=mode: [r.as_dict() for r in records[mode]])  # type: ignore[misc]
    return len(found), records


def _row(done: Completion) -> dict[str, Any]:
    """An agent's answer and its last search."""
    out: dict[str, Any] = {"answer": done.message.text, "query": "", "pages": [], "content": ""}
    for step in done.steps:
        data = step.get("data")
        if not step["is_error"] and isinstance(data, Mapping) and "pages" in data:
            query = str(step["arguments"].get("query") or "")
            out |= {"query": query, "pages": list(data["pages"]), "content": step["content"]}
    return out


def _tokens(documents: Sequence[Document]) -> int:
    """A generous estimate: three letters a token, two tokens a Chinese character."""
    text = "".join(document.text for document in documents)
    wide = sum(character > "\u2e80" for character in text)
    return (len(text) - wide) // 3 + 2 * wide
