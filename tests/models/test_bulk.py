"""Conversations in bulk are those of the template itself, for every built-in template and for odd contents."""

from __future__ import annotations

import random

import pytest

from bench.parts.template_talks import FAMILIES, WORDS, build
from riverrun.base.errors import InputError
from riverrun.base.types import Message
from riverrun.models.bulk import BulkEncoder
from riverrun.models.chat import ChatTemplate
from riverrun.models.opaque import NotOpaque, Opaque
from riverrun.models.templates import builtin_template
from riverrun.models.tokenizer import Tokenizer
from riverrun.models.words import Words
from tests.tiny_model import CHATML, SPECIAL, write_tokenizer

EDGES = ["", " ", "\n", "  ", ""]


def template_of(name: str) -> ChatTemplate:
    family = FAMILIES[name]
    return ChatTemplate(builtin_template(family.template), bos_token=family.bos, eos_token=family.eos)


def text(rng: random.Random, special: list[str]) -> str:
    words = [rng.choice(special if special and rng.random() < 0.03 else WORDS) for _ in range(rng.randint(0, 5))]
    return rng.choice(EDGES) + " ".join(words) + rng.choice(EDGES)


def talk(rng: random.Random, special: list[str]) -> list[Message]:
    turns = [Message.of("system", text(rng, special))] if rng.random() < 0.4 else []
    for _ in range(rng.randint(1, 3)):
        turns += [Message.of("user", text(rng, special)), Message.of("assistant", text(rng, special))]
    return turns


def alone(template: ChatTemplate, tokenizer: Tokenizer, messages: list[Message]) -> object:
    try:
        return template.encode_turns(tokenizer, messages)
    except InputError as error:
        return str(error)


@pytest.mark.parametrize("name", FAMILIES)
def test_bulk_is_the_template_itself(name: str) -> None:
    rng = random.Random(f"bulk {name}")
    template, tokenizer = template_of(name), build(name)
    talks = [talk(rng, sorted(tokenizer.special)) for _ in range(60)]
    encoder = BulkEncoder(template, tokenizer)
    for _ in range(2):  # the second time with what was kept of the first
        found = [str(each) if isinstance(each, InputError) else each for each in encoder.encode(talks)]
        assert found == [alone(template, tokenizer, each) for each in talks]


def test_most_families_are_rendered_once_a_shape() -> None:
    """A guard against everything falling back to one at a time."""
    plain = [Message.of("user", "How is it?"), Message.of("assistant", "Warm.")]
    fast = set()
    for name in FAMILIES:
        encoder = BulkEncoder(template_of(name), build(name))
        encoder.encode([plain])
        fast |= {name} if any(encoder._shapes.values()) else set()
    assert len(fast) >= len(FAMILIES) // 2, sorted(fast)


@pytest.fixture
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer.from_file(folder / "tokenizer.json", bos_id=1, end_ids=[2])


HEAD = "<|im_start|>{{ m.role }}\n"
SAID = HEAD + "{{ m.content }}<|im_end|>"
ODD = {
    "compares": "{% if m.content == 'a' %}x{% endif %}" + SAID,
    "searches": "{% if 'a' in m.content %}x{% endif %}" + SAID,
    "measures": "{{ m.content | length }}" + SAID,
    "splits": HEAD + "{{ m.content.split('a')[-1] }}<|im_end|>",
    "cuts": HEAD + "{{ m.content[:3] }}<|im_end|>",
    "formats": HEAD + "{{ '%s' % m.content }}<|im_end|>",
    "raises": HEAD + "{{ m.content | upper }}<|im_end|>",
    "joins": "<|im_start|>{{ [m.role, m.content] | join('\n') }}<|im_end|>",
    "json": HEAD + "{{ m.content | tojson }}<|im_end|>",
    "macro": "{% macro say(m) %}{{ m.content }}{% endmacro %}" + HEAD + "{{ say(m) | trim }}<|im_end|>",
    "captures": "{% set t %} {{ m.content }} {% endset %}" + HEAD + "{{ t | trim }}<|im_end|>",
    "twice": HEAD + "{{ m.content }}{{ m.content }}<|im_end|>",
    "trims": "<|im_start|>{{ m.role ~ '\n' ~ m.content.strip() }}<|im_end|>",
    "opens nothing": "{{ m.content }}<|im_end|>",
    "tests": HEAD + "{% if m.content is string %}{{ m.content }}{% endif %}<|im_end|>",
    "half a token": SAID + "<|im_",
}


@pytest.mark.parametrize("name", ODD)
def test_templates_that_look_into_contents_are_run_for_each(name: str, tokenizer: Tokenizer) -> None:
    source = "{% for m in messages %}" + ODD[name] + "{% endfor %}"
    template = ChatTemplate(source, bos_token="<|im_start|>", eos_token="<|im_end|>")
    encoder = BulkEncoder(template, tokenizer)
    rng = random.Random(name)
    contents = ["a", "b", " a ", "xayaz", "start|>", "b<", "<|im_end|>", "\ufdd6", "long " * 9, "aaa"]
    talks = [
        [Message.of("user", rng.choice(contents)), Message.of("assistant", rng.choice(contents))] for _ in range(40)
    ]
    found = [str(each) if isinstance(each, InputError) else each for each in encoder.encode(talks)]
    assert found == [alone(template, tokenizer, each) for each in talks]


def test_half_a_surrogate_spoils_one_conversation_only(tokenizer: Tokenizer) -> None:
    encoder = BulkEncoder(ChatTemplate(CHATML, eos_token=SPECIAL[2]), tokenizer)
    talks = [[Message.of("user", ask), Message.of("assistant", "b")] for ask in ("one", "\ud800", "two")]
    found = encoder.encode(talks)
    assert [isinstance(each, InputError) for each in found] == [False, True, False]


def test_an_opaque_text_cannot_be_looked_into() -> None:
    value = Opaque((0, "n"))
    for look in (
        lambda: value == "a",
        lambda: "a" in value,
        lambda: value[0],
        lambda: str(value),
        lambda: f"{value}",
        lambda: "%s" % value,  # noqa: UP031
        lambda: value < "b",
        lambda: value.strip("x"),
        lambda: ("a" + value).strip(),
        lambda: [*value],
    ):
        with pytest.raises(NotOpaque):
            look()
    for other in (lambda: len(value), lambda: {value: 1}):
        with pytest.raises((TypeError, NotOpaque)):
            other()


@pytest.mark.parametrize("name", FAMILIES)
def test_word_by_word_gives_the_ids_of_the_whole_text(name: str) -> None:
    rng, tokenizer = random.Random(f"words {name}"), build(name)
    words = Words(tokenizer)
    odd = ["\n", "a\nb", "\t", "\u3000", "7", "'s", "don't", "字", "é", "e\u0301", "end.\n\n", "x" * 40, "(", "...", ""]
    texts = [rng.choice(["", " "]) + " ".join(rng.choices([*WORDS, *odd], k=rng.randint(1, 9))) for _ in range(400)]
    taken = [text for text in texts if words.takes(text)]
    for _ in range(2):
        assert words.encode(taken) == [each.ids for each in tokenizer.encode_many(taken)]
    byte_level = name in ("chatml", "llama-3", "llama-3.1", "qwen2.5", "qwen3")
    assert words.usable == byte_level
    assert (len(taken) > 50) == byte_level
