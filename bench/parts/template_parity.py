"""One conversation through riverrun and through transformers: what differs, in words."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from bench.parts.template_talks import FAMILIES, Talk, build, save_folder, talk
from riverrun.base.errors import ConfigError
from riverrun.models.chat import ChatTemplate, template_messages
from riverrun.models.templates import builtin_template
from riverrun.models.tokenizer import Tokenizer

__all__ = ["problems_of", "reference"]


def reference(name: str, folder: Path) -> Any:
    """transformers' fast tokenizer class over the family's saved folder."""
    import transformers

    return transformers.PreTrainedTokenizerFast.from_pretrained(save_folder(name, folder))


def problems_of(name: str, other: Any, rng: random.Random) -> list[str]:
    """What is wrong with one random conversation of a family; empty when all is equal."""
    family, case = FAMILIES[name], talk(name, rng)
    template = ChatTemplate(builtin_template(family.template), bos_token=family.bos, eos_token=family.eos)
    out = [*_prompt_problems(name, template, other, case)]
    if case.messages[-1].role == "assistant":
        out += _label_problems(name, template, case)
    return [f"{name}: {problem}: {case.messages!r} {case.tools!r} {case.variables!r}" for problem in out]


def _theirs(other: Any, case: Talk, *, tokenize: bool, opened: bool) -> Any:
    rows, tools = template_messages(case.messages), [tool.to_openai() for tool in case.tools] or None
    kept = {"return_dict": False} if tokenize else {}
    return other.apply_chat_template(
        rows, tools=tools, tokenize=tokenize, add_generation_prompt=opened, **kept, **case.variables
    )


def _prompt_problems(name: str, template: ChatTemplate, other: Any, case: Talk) -> list[str]:
    tokenizer = build(name)
    out = []
    for opened in (False, True):
        text = template.render(case.messages, add_generation_prompt=opened, tools=case.tools, variables=case.variables)
        if text != _theirs(other, case, tokenize=False, opened=opened):
            out.append("another text")
    ids = template.encode(tokenizer, case.messages, tools=case.tools, variables=case.variables)
    theirs = _theirs(other, case, tokenize=True, opened=True)
    if not case.hostile and ids != theirs:
        at = next((i for i, (a, b) in enumerate(zip(ids, theirs, strict=False)) if a != b), min(len(ids), len(theirs)))
        shown = [[tokenizer.token(i) for i in x[at : at + 5]] for x in (ids, theirs)]
        out.append(f"other ids from {at} on: {shown[0]} {shown[1]}")
    if case.hostile:
        tame = case.tame()
        structure = {*tokenizer.special.values(), *_marks(template, tokenizer, case)}
        wanted = [i for i in _theirs(other, tame, tokenize=True, opened=True) if i in structure]
        if [i for i in ids if i in structure] != wanted:
            out.append("a special token that somebody wrote was taken for one")
        ours, others = (tokenizer.decode(x, skip_special=False) for x in (ids, theirs))
        if _bare(ours) != _bare(others):
            out.append("another text behind the ids")
    return out


def _marks(template: ChatTemplate, tokenizer: Tokenizer, case: Talk) -> list[int]:
    """Tokens of calls and results that nobody but the template (and the assistant) may write where there are tools."""
    said = "".join(m.text for m in case.messages if m.role == "assistant")
    uses = bool(case.tools) or any(m.role == "tool" for m in case.messages)
    if not uses or any(text in said for text in tokenizer.added):
        return []
    return [index for text, index in tokenizer.added.items() if text.strip() and text in template.source]


def _label_problems(name: str, template: ChatTemplate, case: Talk) -> list[str]:
    """Against the difference of renderings: what a turn adds to the prompt that was opened for it."""
    tokenizer, out = build(name), []
    given: dict[str, Any] = {"tools": case.tools, "variables": case.variables}
    try:
        ids, learned = template.encode_with_labels(tokenizer, case.messages, **given)
    except ConfigError as error:
        said = [m.text for m in case.messages if m.role == "assistant"]
        thought = FAMILIES[name].template == "qwen3" and any("</think>" in text for text in said)
        return [] if thought else [f"no labels: {error}"]
    whole = template.render(case.messages, add_generation_prompt=False, **given)
    if not case.hostile and ids != tokenizer.encode(whole, special=True):
        out.append("labels with other ids than the text")
    wanted = ""
    for i, message in enumerate(case.messages):
        if message.role != "assistant":
            continue
        prompt = template.render(case.messages[:i], add_generation_prompt=True, **given)
        with_turn = template.render(case.messages[: i + 1], add_generation_prompt=False, **given)
        if not with_turn.startswith(prompt) or not whole.startswith(with_turn):
            return out  # the template writes a turn otherwise when another follows: no reference
        wanted += with_turn[len(prompt) :].rstrip("\n")
    shown = tokenizer.decode([i for i, flag in zip(ids, learned, strict=True) if flag], skip_special=False)
    if _bare(shown) != _bare(wanted):
        out.append(f"learned {shown!r}, wanted {wanted!r}")
    return out


def _bare(text: str) -> str:
    """Without spaces, which SentencePiece writes in two ways."""
    return "".join(text.replace("▁", " ").split())
