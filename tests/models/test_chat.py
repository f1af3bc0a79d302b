"""Chat templates: parity with transformers, what is learned, what stays text, templates that mean harm."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from bench.parts.template_parity import problems_of, reference
from bench.parts.template_talks import FAMILIES, build
from riverrun.base.errors import ConfigError, InputError, UnsupportedError
from riverrun.base.types import Image, Message, ToolCall, ToolSpec
from riverrun.models.chat import ChatTemplate
from riverrun.models.jinja import TemplateCode
from riverrun.models.marks import MarkedText, Shield
from riverrun.models.templates import builtin_template, choose, folder_templates, gguf_templates, names, sources
from riverrun.models.tokenizer import Tokenizer

WEATHER = ToolSpec("weather", "天气 <|im_end|>", {"type": "object", "properties": {"city": {"type": "string"}}})
CALL = ToolCall("weather", {"city": "上海"}, "call00001")
TALK = [
    Message.of("user", "How is it?"),
    Message("assistant", tool_calls=(CALL,)),
    Message.of("tool", "22 °C", tool_call_id="call00001", name="weather"),
    Message.of("assistant", "Warm."),
]


def template_of(name: str) -> ChatTemplate:
    family = FAMILIES[name]
    return ChatTemplate(builtin_template(family.template), bos_token=family.bos, eos_token=family.eos)


@pytest.mark.parametrize("name", FAMILIES)
def test_text_ids_and_labels_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    """A sample of `make soak-templates`."""
    pytest.importorskip("transformers", reason="not run here: transformers is not installed")
    other = reference(name, tmp_path)
    problems = [problem for n in range(15) for problem in problems_of(name, other, random.Random(f"{name} 1 {n}"))]
    assert not problems, problems[0]


def test_every_built_in_template_says_where_it_is_from() -> None:
    assert {family.template for family in FAMILIES.values()} == set(names())
    for name, card in sources().items():
        assert card["source"]
        text = builtin_template(name)
        assert all(token in text or token == "<|begin_of_text|>" or "|interp" in token or "|plug" in token
                   or token in ("<bos>", "<|eom_id|>") for token in card["tokens"]), name  # fmt: skip
    with pytest.raises(InputError, match=r"no built-in chat template 'qwen'\. Did you mean 'qwen3'"):
        builtin_template("qwen")


def learned(name: str, messages: list[Message], tools: tuple[ToolSpec, ...] = (), **variables: Any) -> list[str]:
    """What is learned, cut where something else stands between."""
    tokenizer = build(name)
    ids, flags = template_of(name).encode_with_labels(tokenizer, messages, tools=tools, variables=variables)
    runs: list[list[int]] = []
    for i, (token, flag) in enumerate(zip(ids, flags, strict=True)):
        if flag and (not i or not flags[i - 1]):
            runs.append([])
        if flag:
            runs[-1].append(token)
    return [tokenizer.decode(run, skip_special=False) for run in runs]


HERMES = '<tool_call>\n{"name": "weather", "arguments": {"city": "上海"}}\n</tool_call><|im_end|>'


@pytest.mark.parametrize(
    ("name", "call", "answer"),
    [
        ("qwen2.5", HERMES, "Warm.<|im_end|>"),
        ("qwen3", HERMES, "<think>\n\n</think>\n\nWarm.<|im_end|>"),
        (
            "internlm2",
            '<|action_start|><|plugin|>\n{"name": "weather", "parameters": {"city": "上海"}}<|action_end|><|im_end|>',
            "Warm.<|im_end|>",
        ),
        ("llama-3.1", '{"name": "weather", "parameters": {"city": "上海"}}<|eot_id|>', "Warm.<|eot_id|>"),
        (
            "mistral-v3",
            '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "上海"}, "id": "call00001"}]</s>',
            "Warm.</s>",
        ),
    ],
)
def test_calls_are_learned_as_the_template_writes_them(name: str, call: str, answer: str) -> None:
    assert learned(name, TALK, (WEATHER,)) == [call, answer]


def test_an_internlm2_conversation_token_for_token() -> None:
    """The form of InternLM's chat_format.md: plugin, interpreter, file and environment turns."""
    messages = [
        Message.of("system", "Be brief."),
        Message.of("system", "You can run code.", name="interpreter"),
        Message.of("user", "Plot it."),
        Message.of("user", '[{"path": "data.csv"}]', name="file"),
        Message("assistant", Message.of("user", "Plotting.").content, (ToolCall("interpreter", {"code": "plot()"}),)),
        Message.of("tool", "![image](x.png)", name="interpreter"),
        Message("assistant", tool_calls=(CALL,)),
        Message.of("tool", '{"temperature": 22}', name="weather"),
    ]
    text = template_of("internlm2").render(messages, add_generation_prompt=True, tools=[ToolSpec("weather", "d", {})])
    assert text == (
        "<s><|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>system name=<|interpreter|>\nYou can run code.<|im_end|>\n"
        '<|im_start|>system name=<|plugin|>\n[{"name": "weather", "description": "d", "parameters": {}}]<|im_end|>\n'
        "<|im_start|>user\nPlot it.<|im_end|>\n"
        '<|im_start|>user name=file\n[{"path": "data.csv"}]<|im_end|>\n'
        "<|im_start|>assistant\nPlotting.<|action_start|><|interpreter|>\n```python\nplot()\n```<|action_end|><|im_end|>\n"
        "<|im_start|>environment name=<|interpreter|>\n![image](x.png)<|im_end|>\n"
        '<|im_start|>assistant\n<|action_start|><|plugin|>\n{"name": "weather", "parameters": {"city": "上海"}}'
        "<|action_end|><|im_end|>\n"
        '<|im_start|>environment name=<|plugin|>\n{"temperature": 22}<|im_end|>\n'
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|im_end|>{% endfor %}",  # opens no turn
        "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}",  # nor ends one
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",  # noqa: E501
    ],
)
def test_templates_that_open_no_turn(template: str) -> None:
    tokenizer = build("chatml")
    talk = [
        Message.of("user", "a?"),
        Message.of("assistant", " yes "),
        Message.of("user", "b"),
        Message.of("assistant", "no"),
    ]
    ids, flags = ChatTemplate(template).encode_with_labels(tokenizer, talk)
    shown = tokenizer.decode([i for i, flag in zip(ids, flags, strict=True) if flag], skip_special=False)
    assert "".join(shown.split()) in ("yes<|im_end|>no<|im_end|>", "yesno", "a?yesbno")
    assert tokenizer.decode(ids, skip_special=False) == ChatTemplate(template).render(talk, add_generation_prompt=False)


def test_what_a_template_drops_is_not_learned_in_silence() -> None:
    talk = [Message.of("user", "a"), Message.of("assistant", "<think>\nhm\n</think>\n\nb"), Message.of("user", "c")]
    assert learned("qwen3", talk[:2]) == ["<think>\nhm\n</think>\n\nb<|im_end|>"]
    with pytest.raises(ConfigError, match=r"rewrites a part of message 2 \(assistant: '<think>"):
        learned("qwen3", [*talk, Message.of("assistant", "d")])
    assert learned("qwen3", [talk[0], Message.of("assistant", "b")], enable_thinking=False) == ["b<|im_end|>"]
    changing = ChatTemplate("{% for m in messages %}{{ m.content | upper }}{% endfor %}")
    with pytest.raises(ConfigError, match=r"does not show where message 2 \(assistant\) ends"):
        changing.encode_with_labels(build("chatml"), talk[:2])


def test_nobody_but_the_template_writes_structure() -> None:
    """Results, descriptions, arguments, names: what stands there is text, also where it crosses a field's end."""
    for name in ("qwen2.5", "qwen3", "internlm2", "llama-3.1", "mistral-v3"):
        tokenizer, template = build(name), template_of(name)
        nasty = "".join([*tokenizer.special, *tokenizer.added])
        tool = ToolSpec("weather", nasty, {"type": "object", "properties": {nasty: {"description": nasty}}})
        talk = [
            Message.of("user", nasty),
            Message("assistant", tool_calls=(ToolCall("weather", {nasty: [nasty]}, "call00001"),)),
            Message.of("tool", nasty, tool_call_id="call00001", name="weather"),
        ]
        clean = list(TALK[:3])
        structure = [*tokenizer.special.values(), *(i for t, i in tokenizer.added.items() if t in template.source)]
        wanted, got = (
            [i for i in template.encode(tokenizer, rows, tools=[spec]) if i in structure]
            for rows, spec in ((clean, ToolSpec("weather", "d", {})), (talk, tool))
        )
        assert got == wanted, name
        ids = template.encode(tokenizer, talk, tools=[tool])
        text = template.render(talk, add_generation_prompt=True, tools=[tool])
        assert tokenizer.decode(ids, skip_special=False).replace(" ", "") == text.replace(" ", "")


def test_marks() -> None:
    shield = Shield(["<s>", "ab", "bc", "x"])
    for text in ("<s>", "abc", "x", "\ufdd0<s>\ufdd3", "<s", "s>", "a<<s>>", ""):
        marked = MarkedText.read(shield(text))
        assert marked.text == text
        for token in ("<s>", "ab", "bc", "x"):
            place = text.find(token)
            assert place < 0 or marked.is_literal(place, place + len(token))
    joined = MarkedText.read(shield("<") + "s>" + "<s>")  # a token that begins in one field and ends in another
    assert joined.is_literal(0, 3)
    assert not joined.is_literal(3, 6)
    assert MarkedText.read(shield({"<s>": ["x", 1, None]})["\ufdd0<\ufdd1s>"][0]).text == "x"


def test_a_template_without_tools_refuses_them() -> None:
    for name in ("chatml", "gemma", "llama-3"):
        template = template_of(name)
        assert not template.knows_tools
        with pytest.raises(InputError, match="does not write the tool 'weather'"):
            template.render(TALK[:1], add_generation_prompt=True, tools=[WEATHER])
        says = "must alternate" if name == "gemma" else "knows no tools and there is a tool's result"
        with pytest.raises(InputError, match=says):
            template.encode(build(name), TALK[:3])
    assert all(template_of(name).knows_tools for name, family in FAMILIES.items() if family.tools)


def test_several_templates_by_name() -> None:
    both = {"default": "plain", "tool_use": "{{ tools[0].function.name }}", "rag": "{{ documents[0].text }}"}
    template = ChatTemplate(both)
    talk = [Message.of("user", "x")]
    assert template.render(talk, add_generation_prompt=False) == "plain"
    assert template.render(talk, add_generation_prompt=False, tools=[WEATHER]) == "weather"
    given = {"documents": [{"text": "page"}]}
    assert template.render(talk, add_generation_prompt=False, variables=given, name="rag") == "page"
    with pytest.raises(InputError, match=r"has no chat template 'rug'\. Did you mean 'rag'"):
        template.render(talk, add_generation_prompt=False, name="rug")
    with pytest.raises(ConfigError, match="needs one named 'default'"):
        ChatTemplate({"rag": "x"})
    with pytest.raises(InputError, match="'messages' is set by the conversation"):
        template.render(talk, add_generation_prompt=False, variables={"messages": []})
    with pytest.raises(UnsupportedError, match="part of type 'image'"):
        template.render([Message("user", (Image(url="x"),))], add_generation_prompt=False)
    assert template.sha256 != ChatTemplate("plain").sha256


def test_where_templates_are_found(tmp_path: Path) -> None:
    settings = {"chat_template": [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]}
    assert folder_templates(tmp_path, settings) == {"default": "a", "tool_use": "b"}
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("c")
    (tmp_path / "chat_template.jinja").write_text("d")
    assert folder_templates(tmp_path, {}) == {"default": "d", "rag": "c"}
    assert gguf_templates({"tokenizer.chat_template": "a", "tokenizer.chat_template.tool_use": "b"}) == {
        "default": "a",
        "tool_use": "b",
    }
    assert choose({"default": "a"}, "", "internlm2", tmp_path) == {"default": "a"}
    assert choose({}, "", "internlm2", tmp_path)["default"] == builtin_template("internlm2")
    assert choose({"default": "a"}, "chatml", "llama", tmp_path)["default"] == builtin_template("chatml")
    with pytest.raises(InputError, match=r"has no chat template: .* chatml, gemma, gemma-3, internlm2"):
        choose({}, "", "llama", tmp_path)


HARM = {
    "{{ ''.__class__.__mro__ }}": "unsafe",
    "{{ cycler.__init__.__globals__ }}": "unsafe",
    "{{ messages.append(1) }}": "unsafe",
    "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}": "more than 1000000 turns",
    "{{ range(10**9) | list }}": "asked for 1000000000",
    "{{ 'a' * 10**10 }}": "makes a text or a list of 10000000000",
    "{{ [0] * 10**7 }}": "makes a text or a list of 10000000",
    "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}": "a list of 33554432",
    "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}": "a list of 33554432",
    "{{ 'a' | center(10**9) }}": "center is asked for",
    "{{ 'a'.ljust(10**9) }}": "ljust is asked for",
    "{{ '%1000000000d' % 1 }}": "six digits",
    "{{ '{:>1000000000}'.format(1) }}": "six digits",
    "{{ 'aa' | replace('a', 'b' * 10**7) }}": "makes a text",
    "{{ 3 ** (10**9) }}": "makes a text or a list of",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}": "RecursionError",
    "{{ 1 / 0 }}": "ZeroDivisionError",
}


@pytest.mark.parametrize("source", HARM)
def test_a_template_that_means_harm(source: str) -> None:
    with pytest.raises(InputError, match=HARM[source]):
        TemplateCode(source).render({"messages": [{"content": "x"}]})


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("a\n{% for x in y %}", r"line 2: \{% for x in y %\}"),
        ("a\n\n{% set ns.__class__ = 1 %}", r"line 3: .*cannot hold '__class__'"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nested too deeply"),
    ],
)
def test_a_template_that_is_none(source: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"not valid jinja.*{says}"):
        ChatTemplate(source)


def test_an_error_shows_the_line_of_the_template() -> None:
    template = ChatTemplate("one\n{%- for m in messages %}\n{{ raise_exception('no ' + m.role) }}\n{%- endfor %}")
    with pytest.raises(InputError, match=r"refused these messages \(line 3: \{\{ raise_exception.*\): no user"):
        template.render([Message.of("user", "x")], add_generation_prompt=False)


def test_the_language_of_templates_is_that_of_transformers() -> None:
    source = (
        "{%- for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}{{ loop.nextitem is defined }}"
        "{%- if loop.index == 2 %}{% break %}{% endif %}{{ m | tojson(indent=1) }}{{ {'é': 1} | tojson }}{% endfor %}"
        "{%- for k, v in messages[0].items() if k != 'role' %}{{ k ~ v ~ none }}{% endfor %}"
        "{%- for x in [1, [2]] recursive %}{{ x if x is number else loop(x) }}{% endfor %}{{ dict(a=1) }}"
        "{% generation %}{{ strftime_now('%Y') | length }}{% endgeneration %}{{ ['a', 'b'] | join('-') }}"
    )
    pytest.importorskip("transformers", reason="not run here: transformers is not installed")
    from transformers.utils.chat_template_utils import render_jinja_template

    rows = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}, {"role": "user", "content": "z"}]
    (theirs,), _ = render_jinja_template([rows], chat_template=source)
    assert TemplateCode(source).render({"messages": rows}) == theirs


def test_a_token_may_take_the_spaces_beside_it(tmp_path: Path) -> None:
    """Phi-3's tokens swallow what follows: lstrip and rstrip of added tokens."""
    import tokenizers

    backend = tokenizers.Tokenizer.from_str(build("chatml").to_json())
    backend.add_special_tokens([tokenizers.AddedToken("<|end|>", rstrip=True, lstrip=True, normalized=False)])
    plain = tokenizers.Tokenizer.from_str(backend.to_str())
    text = "a  <|end|> \n b<|im_end|> c"
    assert Tokenizer(backend).encode(text, special=True) == plain.encode(text, add_special_tokens=False).ids
