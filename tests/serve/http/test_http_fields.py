"""Every field that a request may hold does something: one test for each, over HTTP on a tiny model.

`test_no_field_is_left_out` compares this list with the bodies' own fields.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import httpx
import pytest

from riverrun.models.load import load_checkpoint
from riverrun.serve.http.app import make_app
from riverrun.serve.http.schema import ChatBody, CompletionBody
from riverrun.serve.http.server import BackgroundServer
from riverrun.serve.llm import LLM
from tests.tiny_model import CHATML, write_tiny

ASKED = [{"role": "user", "content": "How much is the book about salt?"}]
TEXT = "How much is the book? How much is the"
TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {"type": "object", "properties": {"q": {"enum": ["a", "b"]}}, "required": ["q"]},
    },
}
Ask = Callable[..., dict[str, Any]]
CHECKED: dict[str, Callable[[Ask, Ask], None]] = {}


def checks(*fields: str) -> Callable[[Callable[[Ask, Ask], None]], Callable[[Ask, Ask], None]]:
    def note(test: Callable[[Ask, Ask], None]) -> Callable[[Ask, Ask], None]:
        CHECKED.update(dict.fromkeys(fields, test))
        return test

    return note


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LLM, httpx.Client]]:
    folder = write_tiny(tmp_path_factory.mktemp("tiny"), max_position_embeddings=1024)
    (folder / "chat_template.jinja").write_text(CHATML + "{{ tone or '' }}", encoding="utf-8")
    with LLM(folder, dtype="float32", slots=8, name="tiny") as model, BackgroundServer(make_app({"tiny": model})) as on:
        with httpx.Client(base_url=on.url, timeout=120, trust_env=False) as client:
            yield model, client
        model.loop.run(model.loop.scheduler.check_integrity)


@pytest.fixture(scope="module")
def chat(tiny: tuple[LLM, httpx.Client]) -> Ask:
    return asker(tiny[1], "/v1/chat/completions", messages=ASKED, max_tokens=12)


@pytest.fixture(scope="module")
def complete(tiny: tuple[LLM, httpx.Client]) -> Ask:
    return asker(tiny[1], "/v1/completions", prompt=TEXT, max_tokens=12)


def asker(client: httpx.Client, path: str, **base: Any) -> Ask:
    def ask(**fields: Any) -> dict[str, Any]:
        response = client.post(path, json={"model": "tiny", **base, **fields})
        if fields.get("stream"):
            lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: {")]
            return {"events": [json.loads(line) for line in lines]}
        answer: dict[str, Any] = response.json()
        return answer

    return ask


def text(answer: dict[str, Any], index: int = 0) -> str:
    choice = answer["choices"][index]
    return str(choice["text"] if "text" in choice else choice["message"]["content"])


def tokens(complete: Ask, **fields: Any) -> list[str]:
    found = complete(logprobs=0, **fields)["choices"][0]["logprobs"]["tokens"]
    return [str(token) for token in found]


@checks("model")
def _model(chat: Ask, complete: Ask) -> None:
    assert chat()["model"] == complete()["model"] == "tiny"
    assert chat(model="other")["error"]["code"] == "model_not_found"


@checks("messages")
def _messages(chat: Ask, complete: Ask) -> None:
    other = [{"role": "system", "content": "You sell maps."}, *ASKED]
    assert text(chat(messages=other)) != text(chat())
    assert chat(messages=other)["usage"]["prompt_tokens"] > chat()["usage"]["prompt_tokens"]


@checks("prompt")
def _prompt(chat: Ask, complete: Ask) -> None:
    several = complete(prompt=[TEXT, "SELECT price", TEXT])
    assert [text(several, n) for n in range(3)] == [
        text(complete()),
        text(complete(prompt="SELECT price")),
        text(complete()),
    ]
    ids = complete(prompt=[[5, 6, 7], [8]])
    assert ids["usage"]["prompt_tokens"] == 4
    assert text(ids, 0) == text(complete(prompt=[5, 6, 7]))


@checks("max_tokens", "max_completion_tokens")
def _lengths(chat: Ask, complete: Ask) -> None:
    for given in ({"max_tokens": 3}, {"max_completion_tokens": 3, "max_tokens": None}):
        answer = chat(**given)
        assert answer["usage"]["completion_tokens"] == 3
        assert answer["choices"][0]["finish_reason"] == "length"


@checks("temperature", "seed")
def _temperature(chat: Ask, complete: Ask) -> None:
    cold, hot = text(chat(seed=1)), [text(chat(temperature=1.5, seed=seed)) for seed in (1, 1, 2)]
    assert hot[0] == hot[1]
    assert len({cold, *hot}) == 3


@checks("top_p", "top_k", "min_p")
def _cuts(chat: Ask, complete: Ask) -> None:
    greedy = text(complete())
    for given in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert text(complete(temperature=1.5, seed=3, **given)) == greedy
    assert text(complete(temperature=1.5, seed=3)) != greedy


@checks("presence_penalty", "frequency_penalty")
def _penalties(chat: Ask, complete: Ask) -> None:
    again = {"logit_bias": {"70": 8.0}, "max_tokens": 24}  # a token that comes again and again
    assert max(map(tokens(complete, **again).count, tokens(complete, **again))) > 8
    for given in ({"presence_penalty": 2.0}, {"frequency_penalty": 2.0}):
        changed = tokens(complete, **again, **given)
        assert changed != tokens(complete, **again)
    for given in ({"presence_penalty": 2.0}, {"frequency_penalty": 2.0}):
        assert tokens(complete, **again, **given).count("d") < tokens(complete, **again).count("d")


@checks("repetition_penalty")
def _repetition(chat: Ask, complete: Ask) -> None:
    assert tokens(complete, max_tokens=30, repetition_penalty=1.8) != tokens(complete, max_tokens=30)
    again = {"logit_bias": {"70": 8.0}, "max_tokens": 24}
    assert tokens(complete, **again, repetition_penalty=3.0).count("d") < tokens(complete, **again).count("d")


@checks("no_repeat_ngram_size")
def _ngrams(chat: Ask, complete: Ask) -> None:
    again = {"logit_bias": {"70": 30.0, "71": 29.0}, "max_tokens": 20}
    found = tokens(complete, **again, no_repeat_ngram_size=2)
    pairs = list(pairwise(found))
    assert len(set(pairs)) == len(pairs)
    usual = tokens(complete, **again)
    assert len(set(pairwise(usual))) < 5


@checks("logit_bias")
def _bias(chat: Ask, complete: Ask) -> None:
    assert set(tokens(complete, logit_bias={"70": 100.0})) == {tokens(complete, logit_bias={"70": 100.0})[0]}
    first = complete(logprobs=1)["choices"][0]["logprobs"]["tokens"][0]
    assert tokens(complete, prompt=TEXT, bad_words=[], logit_bias={})[0] == first


@checks("bad_words")
def _bad_words(chat: Ask, complete: Ask) -> None:
    usual = tokens(complete)
    word = next(token for token in usual if token.isalnum() and token.isascii())
    assert word not in tokens(complete, bad_words=[word])
    assert tokens(complete, bad_words=[word])[: usual.index(word)] == usual[: usual.index(word)]


@checks("stop", "stop_token_ids")
def _stops(chat: Ask, complete: Ask) -> None:
    whole = text(complete())
    at = next(n for n in range(1, len(whole)) if whole[n].isascii() and whole[n] != "\ufffd")
    for given in (whole[at], [whole[at], "never"]):
        answer = complete(stop=given)
        assert text(answer) == whole[: whole.index(whole[at])]
        assert answer["choices"][0]["finish_reason"] == "stop"
    biased = {"logit_bias": {"70": 100.0}}
    answer = complete(**biased, stop_token_ids=[70])
    assert (text(answer), answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (
        "",
        1,
        "stop",
    )


@checks("min_tokens", "ignore_eos")
def _ends(chat: Ask, complete: Ask) -> None:
    ending = {"logit_bias": {"2": 100.0}}  # the model's end token
    assert complete(**ending)["usage"]["completion_tokens"] == 1
    assert complete(**ending, min_tokens=5)["usage"]["completion_tokens"] == 6
    assert complete(**ending, ignore_eos=True)["choices"][0]["finish_reason"] == "length"


@checks("n")
def _n(chat: Ask, complete: Ask) -> None:
    hot = {"temperature": 1.0, "seed": 4}
    several = chat(**hot, n=3)
    assert [text(several, n) for n in range(3)] == [text(chat(temperature=1.0, seed=seed)) for seed in (4, 5, 6)]
    assert several["usage"]["prompt_tokens"] == chat()["usage"]["prompt_tokens"]
    assert several["usage"]["completion_tokens"] == 36
    assert [choice["index"] for choice in complete(prompt=["a", "b"], n=2)["choices"]] == [0, 1, 2, 3]


@checks("response_format", "guided_json", "guided_regex", "guided_choice", "guided_grammar")
def _guides(chat: Ask, complete: Ask) -> None:
    pytest.importorskip("llguidance", reason="not run here: llguidance is not installed")
    schema = {"type": "object", "properties": {"x": {"enum": [1, 2]}}, "required": ["x"], "additionalProperties": False}
    named = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    for given in ({"response_format": named}, {"guided_json": schema}, {"guided_json": json.dumps(schema)}):
        assert json.loads(text(chat(**given, max_tokens=40)))["x"] in (1, 2)
    assert text(chat(response_format={"type": "json_object"}, max_tokens=40)).startswith("{")
    assert text(chat(response_format={"type": "text"})) == text(chat())
    assert re.fullmatch("[ab]{3}", text(chat(guided_regex="[ab]{3}")))
    assert text(chat(guided_choice=["yes", "no"])) in ("yes", "no")
    assert text(chat(guided_grammar='start: "x" "y"')) == "xy"


@checks("logprobs", "top_logprobs")
def _logprobs(chat: Ask, complete: Ask) -> None:
    choice = chat(logprobs=True, top_logprobs=3)["choices"][0]
    content = choice["logprobs"]["content"]
    assert len(content) == 12
    assert b"".join(bytes(each["bytes"]) for each in content).decode("utf-8", "replace") == choice["message"]["content"]
    for each in content:
        assert len(each["top_logprobs"]) == 3
        assert each["logprob"] == pytest.approx(each["top_logprobs"][0]["logprob"]), "greedy takes the likeliest"
    assert chat()["choices"][0]["logprobs"] is None
    found = complete(logprobs=2)["choices"][0]["logprobs"]
    assert len(found["tokens"]) == len(found["token_logprobs"]) == len(found["top_logprobs"]) == 12
    assert found["text_offset"][0] == 0


@checks("prompt_logprobs", "echo")
def _prompt_logprobs(chat: Ask, complete: Ask) -> None:
    plain = complete(prompt_logprobs=1)
    rows = plain["prompt_logprobs"]
    assert rows[0] is None
    assert len(rows) == plain["usage"]["prompt_tokens"]
    echoed = complete(echo=True, logprobs=1)["choices"][0]
    assert echoed["text"] == TEXT + text(complete())
    own = [next(iter(row.values()))["logprob"] for row in rows[1:]]
    best = [max(each.values()) for each in echoed["logprobs"]["top_logprobs"][1 : len(rows)]]
    assert best == pytest.approx([max(v["logprob"] for v in row.values()) for row in rows[1:]], abs=1e-4)
    assert len(own) == len(rows) - 1
    alone = complete(echo=True, logprobs=0, max_tokens=0)["choices"][0]
    assert alone["text"] == TEXT
    assert alone["logprobs"]["token_logprobs"][0] is None
    assert alone["logprobs"]["token_logprobs"][1:] == pytest.approx(
        echoed["logprobs"]["token_logprobs"][1 : len(rows)], abs=1e-4
    )
    assert chat(prompt_logprobs=0)["prompt_logprobs"][0] is None


@checks("timeout")
def _timeout(chat: Ask, complete: Ask) -> None:
    answer = complete(max_tokens=900, ignore_eos=True, timeout=0.05)
    assert answer["error"]["code"] == "timeout"
    assert complete(timeout=60)["choices"]


@checks("stream", "stream_options")
def _stream(chat: Ask, complete: Ask) -> None:
    hot = {"temperature": 1.0, "seed": 4, "n": 2}
    for ask in (chat, complete):
        whole = ask(**hot)
        events = ask(**hot, stream=True, stream_options={"include_usage": True})["events"]
        for index in range(2):
            parts = [c for event in events for c in event["choices"] if c["index"] == index]
            said = "".join(c["text"] if "text" in c else c["delta"].get("content") or "" for c in parts)
            assert said == text(whole, index)
        assert events[-1]["usage"] == whole["usage"]
        assert not any(event.get("usage") for event in ask(stream=True)["events"])


@checks("chat_template_kwargs")
def _template_variables(chat: Ask, complete: Ask) -> None:
    plain, loud = (chat(chat_template_kwargs=given)["usage"]["prompt_tokens"] for given in ({}, {"tone": "LOUD"}))
    assert loud > plain
    refused = chat(chat_template_kwargs={"enable_thinking": False})["error"]["message"]
    assert "asks for no 'enable_thinking'; it asks for: tone" in refused


@checks("tools", "tool_choice", "parallel_tool_calls")
def _tools(chat: Ask, complete: Ask) -> None:
    pytest.importorskip("llguidance", reason="not run here: llguidance is not installed")
    offered = chat(tools=[TOOL])["usage"]["prompt_tokens"]
    assert (
        offered > chat(tools=[TOOL], tool_choice="none")["usage"]["prompt_tokens"] == chat()["usage"]["prompt_tokens"]
    )
    for choice in ("required", {"type": "function", "function": {"name": "look"}}):
        answer = chat(tools=[TOOL], tool_choice=choice, parallel_tool_calls=False, max_tokens=100)["choices"][0]
        [call] = answer["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"])["q"] in ("a", "b")
        assert answer["finish_reason"] == "tool_calls"
    several = chat(tools=[TOOL], tool_choice="required", max_tokens=300, temperature=1.0, seed=1)["choices"][0]
    assert len(several["message"]["tool_calls"]) >= 1


@checks("user")
def _user(chat: Ask, complete: Ask) -> None:
    assert text(chat(user="someone")) == text(chat())


@pytest.mark.parametrize("field", list(CHECKED))
def test_the_field_has_its_effect(field: str, chat: Ask, complete: Ask) -> None:
    CHECKED[field](chat, complete)


def test_no_field_is_left_out() -> None:
    assert set(ChatBody.model_fields) | set(CompletionBody.model_fields) == set(CHECKED)


def test_the_end_token_of_the_tiny_model(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What `_ends` and the biases above count on."""
    tokenizer = load_checkpoint(write_tiny(tmp_path_factory.mktemp("ends"))).tokenizer
    assert tokenizer.end_ids == (2,)
