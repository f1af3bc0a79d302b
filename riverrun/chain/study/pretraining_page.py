"""Findings and page of a continued pre-training study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from riverrun.base.artifacts import write_text
from riverrun.chain.stage import read_jsonl
from riverrun.chain.study.study import Outcome
from riverrun.web.charts import Bar, BarGroup, Series, bar_chart, line_chart
from riverrun.web.page import Both, Content, Markup, badge, page, paragraph, section, table

__all__ = ["Reached", "bars_of", "close_pretraining"]

MODELS = {
    "base": Both("base", "基座"),
    "pretrained": Both("trained on the text", "在文本上训练"),
    "tuned": Both("… and tuned", "……再指令微调"),
    "control": Both("base, tuned alike", "基座,同样微调"),
}
SHOWN = 12
ABLE = 0.8
"""Share of the items that a model must get right with the fact in sight for its cloze to mean something."""


@dataclass(frozen=True, slots=True)
class Reached:
    """One figure and what it must reach."""

    name: str
    value: float
    bar: float
    met: bool


def bars_of(bars: Any, scores: Mapping[str, Mapping[str, Any]]) -> list[Reached]:
    """The five bars, from the scores of the four models."""
    base, after, tuned = scores["base"], scores["pretrained"], scores["tuned"]
    cloze = after["cloze"]["value"] / max(base["cloze"]["value"], 1e-9)
    domain = after["domain_bits_per_byte"] / base["domain_bits_per_byte"]
    general = after["bits_per_byte"] / base["bits_per_byte"]
    kept = tuned["against_base"]["instructions"]["difference"]
    answers = tuned["answers"]["value"]
    return [
        Reached("cloze", cloze, bars.cloze, cloze >= bars.cloze),
        Reached("domain", domain, bars.domain, domain <= bars.domain),
        Reached("general", general, bars.general, general <= bars.general),
        Reached("answers", answers, bars.answers, answers >= bars.answers),
        Reached("instructions", kept, bars.instructions, kept >= bars.instructions),
    ]


def close_pretraining(config: Any, outcomes: Mapping[str, Outcome], out: Path) -> dict[str, Any]:
    """Write index.html; return the scores of every model and which bars are met."""
    scores = {name: outcomes[name].result["scores"] for name in MODELS}
    bars = bars_of(config.bars, scores)
    answers = read_jsonl(out / "cells" / "tuned" / "answers.jsonl")
    write_text(out / "index.html", _page(outcomes, scores, bars, answers))
    return {"bars": [asdict(each) for each in bars], "met": all(each.met for each in bars), "scores": scores}


_NAMES = {
    "cloze": Both("Right endings, times those of the base", "选对结尾(相对基座的倍数)"),
    "domain": Both("Bits per byte of held-out text, times the base", "留出文本每字节比特(相对基座)"),
    "general": Both("Bits per byte of general text, times the base", "普通文本每字节比特(相对基座)"),
    "answers": Both("Unseen questions answered after tuning", "微调后回答的未见问题"),
    "instructions": Both("Change of plain instructions followed", "普通指令遵循率的变化"),
}


def _page(
    outcomes: Mapping[str, Outcome],
    scores: Mapping[str, Mapping[str, Any]],
    bars: Sequence[Reached],
    answers: Sequence[Mapping[str, Any]],
) -> str:
    intro = Both(
        "The text tells of a country that was made up from a seed, so a model knows of it only what it reads here. The "
        "cloze asks for the right one of four endings, in wordings that stand nowhere in the text; the four are values "
        "of one kind, all of them named in the text. Questions after tuning are about things of which no question was "
        "trained, in wordings that were not trained either.",
        "文本讲述一个由种子生成的虚构国家,模型只能从这里学到关于它的知识。完形填空要从四个结尾中选出正确的一个,"
        "其措辞在文本中从未出现;四个选项同类,且都在文本中出现过。微调后的提问针对从未训练过问题的事物,措辞也未训练过。",
    )
    marks = {True: badge(Both("met", "达到"), kind="good"), False: badge(Both("missed", "未达到"), kind="bad")}
    rows: list[list[Content | int | float | None]] = [
        [_NAMES[each.name], f"{each.value:.3f}", f"{each.bar:g}", marks[each.met]] for each in bars
    ]
    columns: list[Content] = [Both("figure", "指标"), Both("value", "数值"), Both("bar", "标准"), ""]
    seconds = sum(each.seconds for each in outcomes.values())
    return page(
        Both("Continued pre-training on invented facts", "虚构知识的继续预训练"),
        paragraph(intro),
        section(Both("Bars", "标准"), table(columns, rows, numeric=(1, 2)), anchor="bars"),
        section(Both("What was learned", "学到了什么"), _learned(scores), _control(scores), anchor="learned"),
        section(Both("What was kept", "保留了什么"), _kept(scores), anchor="kept"),
        section(Both("Training", "训练"), _losses(outcomes), _costs(outcomes), anchor="training"),
        section(Both("Some answers", "部分回答"), _answers(answers), anchor="answers"),
        subtitle=f"{outcomes['data'].result['facts']} facts; {seconds / 60:.0f} min",
        navigation=[
            ("bars", Both("Bars", "标准")),
            ("learned", Both("Learned", "学到")),
            ("kept", Both("Kept", "保留")),
            ("training", Both("Training", "训练")),
            ("answers", Both("Answers", "回答")),
        ],
    )


def _learned(scores: Mapping[str, Mapping[str, Any]]) -> Markup:
    groups = []
    for key, name in (("cloze", Both("right ending of four", "四选一")), ("answers", Both("questions", "提问"))):
        bars = [
            Bar(said, scores[model][key]["value"], scores[model][key]["low"], scores[model][key]["high"])
            for model, said in MODELS.items()
        ]
        groups.append(BarGroup(name, bars))
    title = Both("Facts known", "已知事实")
    return bar_chart(groups, title=title, percent=True, limit=0.25, limit_label=Both("chance of the cloze", "随机水平"))


def _control(scores: Mapping[str, Mapping[str, Any]]) -> Markup:
    """Whether the base can do the form of the cloze at all."""
    share = scores["base"]["open_book"]["value"]
    said = Both(
        f"With a sentence that says the fact in sight, the base picks the right ending in {100 * share:.0f} % of them",
        f"当上文中有说出该事实的句子时,基座在 {100 * share:.0f} % 的题目中选对结尾",
    )
    if share >= ABLE:
        end = Both(
            ": it can do the form, and without the sentence it is near chance because it does not know the facts.",
            ":它会做这种题,没有该句时接近随机是因为不知道事实。",
        )
    else:
        end = Both(
            ": it can hardly do the form, so its cloze says little.", ":它几乎不会做这种题,因此完形填空说明不了什么。"
        )
    return paragraph(said, end)


def _kept(scores: Mapping[str, Mapping[str, Any]]) -> Markup:
    columns: list[Content] = [
        "",
        Both("general text, bits/byte", "普通文本 比特/字节"),
        Both("held-out text, bits/byte", "留出文本 比特/字节"),
        Both("instructions", "指令"),
        Both("sums", "加法"),
        Both("endings written greedily", "贪心写出的结尾"),
    ]
    rows: list[list[Content]] = [
        [
            said,
            f"{scores[model]['bits_per_byte']:.3f}",
            f"{scores[model]['domain_bits_per_byte']:.3f}",
            f"{100 * scores[model]['instructions']:.0f} %",
            f"{100 * scores[model]['sums']:.0f} %",
            f"{100 * scores[model]['cloze_greedy']['value']:.0f} %",
        ]
        for model, said in MODELS.items()
    ]
    return table(columns, rows, numeric=range(1, len(columns)))


def _losses(outcomes: Mapping[str, Outcome]) -> Markup:
    series = [
        Series(MODELS[name], list(enumerate(outcomes[name].result["training"]["losses"], 1)))
        for name in ("pretrained", "tuned")
    ]
    return line_chart(series, title=Both("Loss", "损失"), x_label=Both("step", "步"), y_label=Both("nats", "奈特"))


def _costs(outcomes: Mapping[str, Outcome]) -> Markup:
    columns: list[Content] = [
        "",
        Both("steps", "步数"),
        Both("row tokens", "词元"),
        Both("seconds", "秒"),
        Both("row tokens/s", "词元/秒"),
        Both("peak GB", "峰值 GB"),
    ]
    rows: list[list[Content | int | float | None]] = []
    for name in ("pretrained", "tuned", "control"):
        cost = outcomes[name].result["training"]
        figures = [cost["steps"], cost["row_tokens"], f"{cost['seconds']:.0f}", f"{cost['tokens_per_second']:.0f}"]
        rows.append([MODELS[name], *figures, f"{cost['peak_bytes'] / 1e9:.2f}"])
    return table(columns, rows, numeric=range(1, len(columns)))


def _answers(answers: Sequence[Mapping[str, Any]]) -> Markup:
    columns: list[Content] = [Both("question", "问题"), Both("answer", "回答"), Both("fact", "事实"), ""]
    marks = {True: badge(Both("right", "正确"), kind="good"), False: badge(Both("wrong", "错误"), kind="bad")}
    rows: list[list[Content | int | float | None]] = [
        [each["question"], each["answer"], each["value"], marks[bool(each["success"])]] for each in answers[:SHOWN]
    ]
    return table(columns, rows)
