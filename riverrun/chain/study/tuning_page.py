"""The tuning study's page, its JSON figures and the table for the planner."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from riverrun.base.artifacts import write_text
from riverrun.chain.study.study import Outcome, StudyConfig
from riverrun.chain.study.tuning_findings import Group, groups_of, table_of, thresholds_of
from riverrun.web.charts import Bar, BarGroup, Series, bar_chart, line_chart
from riverrun.web.page import Both, Content, Markup, page, paragraph, section, table, tiles

__all__ = ["close_tuning"]

TABLE_FILE = "tuning.yaml"
_NAMES = {
    "enough_rank": Both("Rank that is enough", "足够的秩"),
    "tuning_from_rows": Both("Rows from which training beats prompts", "训练优于提示所需的行数"),
    "full_from_rows": Both("Rows from which full training beats LoRA", "全量训练优于 LoRA 所需的行数"),
    "qlora_loss": Both("Success that QLoRA costs", "QLoRA 损失的成功率"),
}


def close_tuning(config: StudyConfig, outcomes: Mapping[str, Outcome], out: Path) -> dict[str, Any]:
    """Write index.html and tuning.yaml (the form of plan/tables/tuning.yaml); return the findings."""
    groups = groups_of(outcomes, out)
    thresholds = thresholds_of(groups, config.rank)  # type: ignore[attr-defined]
    source = _source(config, outcomes)
    text = yaml.safe_dump(table_of(groups, thresholds, source), sort_keys=False, allow_unicode=True, width=1000)
    write_text(out / TABLE_FILE, f"# From {source}.\n{text}")
    write_text(out / "index.html", _page(groups, thresholds, outcomes, source))
    return {"source": source, "thresholds": thresholds, "groups": [group.figures() for group in groups]}


def _source(config: Any, outcomes: Mapping[str, Outcome]) -> str:
    data = outcomes["data"].result
    return (
        f"tuning study of {Path(config.model).stem}: {data['train']} rows, {data['dev']} questions, "
        f"{len(config.seeds)} seed{'s' * (len(config.seeds) > 1)}"
    )


def _page(
    groups: Sequence[Group], thresholds: Mapping[str, Mapping[str, Any]], outcomes: Mapping[str, Outcome], source: str
) -> str:
    whole = [group for group in groups if not group.fewer]
    seconds = sum(each.seconds for each in outcomes.values())
    intro = Both(
        "The same rows and the same tokens for every method: a question goes in, one SQL query comes out, and it is "
        "right when it fetches the right rows. Whiskers are 95 % intervals over all seeds together.",
        "每种方法使用相同的行和相同的词元:输入问题,输出一条 SQL 查询,取到正确的行即为正确。"
        "误差线是所有种子合计的 95 % 区间。",
    )
    facts = tiles([(_NAMES[name], str(each["value"]), each["why"]) for name, each in thresholds.items()])
    return page(
        Both("Ways to adapt a model", "适配模型的方法"),
        paragraph(intro),
        section(Both("Thresholds", "阈值"), facts, anchor="thresholds"),
        section(Both("Success", "成功率"), _success_chart(whole), anchor="success"),
        section(Both("Fewer rows", "更少的行"), _rows_chart(groups), anchor="rows"),
        section(Both("What was lost elsewhere", "其他能力的损失"), _lost_chart(whole), anchor="lost"),
        section(Both("All figures", "全部数据"), _table(groups), anchor="figures"),
        subtitle=f"{source}; {seconds / 60:.0f} min",
        navigation=[
            ("thresholds", Both("Thresholds", "阈值")),
            ("success", Both("Success", "成功率")),
            ("rows", Both("Rows", "行数")),
            ("lost", Both("Lost", "损失")),
            ("figures", Both("Figures", "数据")),
        ],
    )


def _success_chart(groups: Sequence[Group]) -> Markup:
    bars = []
    for group in groups:
        low, high = group.rate.interval
        bars.append(BarGroup(group.name, [Bar(Both("success", "成功率"), group.rate.value, low, high)]))
    title = Both("Questions answered rightly, all rows", "正确回答的问题(全部行)")
    return bar_chart(bars, title=title, percent=True)


def _rows_chart(groups: Sequence[Group]) -> Markup:
    ranks = {group.rank for group in groups if group.method == "lora" and group.fewer}
    lines: dict[str, list[tuple[float, float]]] = {}
    for group in sorted(groups, key=lambda each: each.rows):
        if group.method in ("retrieval", "full") or (group.method == "lora" and group.rank in ranks):
            lines.setdefault(group.name, []).append((math.log10(group.rows), 100 * group.rate.value))
    return line_chart(
        [Series(name, points) for name, points in lines.items()],
        title=Both("Success by number of rows", "成功率与行数"),
        x_label=Both("log10 of the number of rows", "行数的常用对数"),
        y_label="%",
    )


def _lost_chart(groups: Sequence[Group]) -> Markup:
    trained = [(group, group.mean("against_base", "perplexity", "ratio")) for group in groups]
    bars = [
        BarGroup(group.name, [Bar(Both("perplexity ratio", "困惑度之比"), ratio)]) for group, ratio in trained if ratio
    ]
    title = Both("Perplexity of plain text, times that of the base", "普通文本困惑度(相对基座)")
    return bar_chart(bars, title=title, limit=1.0, limit_label=Both("base", "基座"))


def _table(groups: Sequence[Group]) -> Markup:
    columns: list[Content] = [
        Both("method", "方法"),
        Both("rows", "行数"),
        Both("seeds", "种子"),
        Both("success", "成功率"),
        Both("lowest to highest seed", "各种子最低至最高"),
        Both("perplexity ratio", "困惑度之比"),
        Both("sums", "加法"),
        Both("instructions", "指令"),
        Both("peak GB", "峰值 GB"),
        Both("training s", "训练秒数"),
        Both("row tokens/s", "词元/秒"),
    ]
    rows: list[list[Content | int | float | None]] = []
    for group in groups:
        figures = group.figures()
        low, high = group.range
        rows.append(
            [
                group.name,
                group.rows if group.method != "base" else 0,
                len(group.seeds),
                f"{100 * group.rate.value:.1f} %",
                f"{100 * low:.1f} – {100 * high:.1f} %",
                _plain(figures["perplexity_ratio"], ".3f"),
                _plain(figures["sums_change"], "+.3f"),
                _plain(figures["instructions_change"], "+.3f"),
                f"{figures['peak_bytes'] / 1e9:.2f}",
                _plain(figures["training_seconds"], ".0f"),
                _plain(figures["tokens_per_second"], ".0f"),
            ]
        )
    return table(columns, rows, numeric=range(1, len(columns)))


def _plain(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
