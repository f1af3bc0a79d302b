"""The page of a training: one self-contained HTML file, made from the run's folder alone. No torch.

Figures that a run does not have are left out, not guessed. Headings in English and Chinese.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from riverrun.base.artifacts import write_text
from riverrun.train.history import History, flat, smooth
from riverrun.web.charts import Mark, Series, line_chart
from riverrun.web.page import (
    Both,
    Content,
    Markup,
    badge,
    code_block,
    details,
    join,
    number,
    page,
    paragraph,
    plain,
    section,
    table,
    tiles,
)

__all__ = ["PAGE_FILE", "curves", "training_page", "write_page"]

PAGE_FILE = "report.html"
STEP: dict[str, Content] = {
    "loss": Both("loss", "损失"),
    "grad_norm": Both("gradient norm", "梯度范数"),
    "lr": Both("learning rate", "学习率"),
    "tokens_per_second": Both("tokens a second", "词元/秒"),
    "label_tokens_per_second": Both("label tokens a second", "计损失词元/秒"),
    "padded_share": Both("padded share", "填充占比"),
    "mfu": "MFU",
    "resident_bytes": Both("resident", "常驻内存"),
    "peak_bytes": Both("peak so far", "至今峰值"),
    "loss_scale": Both("loss scale", "损失缩放"),
}
"""Columns that have a chart of their own. Others, the objective's metrics, are drawn under their names."""
COUNTS = {
    *("label_tokens", "plain_text", "units", "tokens", "computed_tokens", "tokens_seen", "seconds", "skipped", "time"),
    *("row_tokens", "rows"),
}
"""Columns that are summed or only looked at."""
MFU = Both(
    "Model FLOP utilisation: model FLOPs / seconds / rate of a bare matrix product measured here in the same numbers. "
    "Linear layers, attention and the head on label rows count; recomputation, norms, embedding and optimizer do not "
    "(PaLM's convention, arXiv:2204.02311).",
    "模型算力利用率:模型浮点运算量 / 秒 / 本机以同一数值类型实测的矩阵乘法速率。计入线性层、注意力和计损失行的输出层;"
    "不计重计算、归一化、嵌入和优化器(PaLM 的约定,arXiv:2204.02311)。",
)
SMOOTHED_FROM, WIDE = 20, 6.0
"""Steps from which a smoothed curve says more; an axis is logarithmic where all values are so many times as far apart
as all but their highest and lowest hundredth."""
SHOWN_SAMPLES, SHOWN_ROWS, SHOWN_METRICS = 12, 100, 12
STEPS = Both("step", "步")
Cells = list[list[Content | int | float | None]]


def write_page(folder: Path, *, lang: Literal["auto", "en", "zh"] = "auto") -> Path:
    """Write the page of a run into its folder; InputError when there is no log of a training."""
    path = folder / PAGE_FILE
    write_text(path, training_page(History.open(folder), lang=lang))
    return path


def training_page(run: History, *, lang: Literal["auto", "en", "zh"] = "auto") -> str:
    """The whole page."""
    parts: list[tuple[str, Content, Content, Content]] = [
        ("result", Both("Result", "结果"), "", _result(run)),
        ("loss", Both("Loss", "损失"), "", _loss(run)),
        ("gradient", Both("Gradient", "梯度"), Both("Gradient and learning rate", "梯度与学习率"), _gradient(run)),
        ("speed", Both("Throughput", "吞吐"), "", _speed(run)),
        ("memory", Both("Memory", "内存"), Both("Memory: predicted and measured", "内存:预测与实测"), _memory(run)),
        ("metrics", Both("Metrics", "指标"), Both("Metrics of the objective", "目标函数指标"), _metrics(run)),
        ("samples", Both("Samples", "样例"), Both("Samples over time", "样例随训练的变化"), _samples(run)),
        ("rows", Both("Rows", "数据行"), Both("Rows left out", "未使用的数据行"), _rows(run)),
        ("checkpoints", Both("Checkpoints", "检查点"), "", _checkpoints(run)),
        ("settings", Both("Settings", "设置"), "", _settings(run)),
    ]
    shown = [part for part in parts if part[3]]
    body = [section(title or short, content, anchor=anchor) for anchor, short, title, content in shown]
    base = Path(str(run.section("model").get("path") or "")).name
    told = f"{base}, {_method(run)}" if base else _method(run)
    return page(
        run.folder.resolve().name or "training",
        *body,
        lang=lang,
        subtitle=Both(f"Training: {told}".rstrip(": "), f"训练:{told}".rstrip(":")),
        navigation=[(anchor, short) for anchor, short, _, _ in shown],
    )


def curves(run: History, *, loss_title: Content) -> Markup:
    """Loss, gradient, rate, throughput and memory without headings: the part of another report."""
    return join(_loss(run, loss_title), _gradient(run), _speed(run), _memory(run), _metrics(run))


def _method(run: History) -> str:
    names = (run.section(key).get("name") for key in ("objective", "method", "optimizer"))
    return ", ".join(str(name) for name in names if name)


def _gigabytes(value: float | int | None) -> str:
    return "–" if value is None else f"{value / 1e9:,.2f}\u00a0GB"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s"


def _marks(run: History) -> list[Mark]:
    again = [Mark(step + 0.5, Both(f"went on from step {step}", f"从第 {step} 步继续")) for step in run.resumes]
    return again + [Mark(step, Both(f"step {step}: not finite", f"第 {step} 步:非有限值"), "bad") for step in run.bad]


def _chart(
    run: History, series: Sequence[Series], title: Content, unit: Content, about: Content = "", **how: Any
) -> Markup:
    """A chart over steps with the run's marks; a logarithmic axis where the values are far apart."""
    ys = [y for one in series for _, y in one.points if math.isfinite(y)]
    if not ys:
        return Markup("")
    wide = how.pop("may_be_log", False) and _far_apart(ys)
    return line_chart(
        series,
        title=title,
        x_label=STEPS,
        y_label=Both(f"{unit.en} (log)", f"{unit.zh}(对数)") if wide and isinstance(unit, Both) else unit,
        description=about,
        log_y=wide,
        marks=_marks(run),
        span=(run.steps[0], run.steps[-1]) if run.steps else None,
        **how,
    )


def _far_apart(values: Sequence[float]) -> bool:
    """Whether a few values would press all others together."""
    own = sorted(values)
    if own[0] <= 0:
        return False
    usual = own[-1 - (len(own) + 99) // 100 if len(own) > 2 else -1] - own[len(own) // 100]
    return own[-1] / own[0] > WIDE and own[-1] - own[0] > WIDE * usual


def _many(count: float) -> str:
    """A count that may be long: 1,234 · 192.4 M."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if count >= size:
            return f"{count / size:.4g} {letter}"
    return number(round(count))


def _pair(run: History, name: str, *, colour: int = 0, weights: str = "", scale: float = 1.0) -> list[Series]:
    """A column as it is and, of enough steps, smoothed."""
    if not run.has(name):
        return []
    values = [value * scale for value in run.column(name)]
    label = STEP.get(name, name)
    if len(values) < SMOOTHED_FROM:
        return [Series(label, run.points(name, values), "dots" if len(values) < 10 else "line", colour)]
    smoothed = smooth(values, run.column(weights) if run.has(weights) else None)
    named = Both(f"{plain(label)}, smoothed", f"{plain(label, 'zh')}(平滑)")
    return [
        Series(label, run.points(name, values), "faint", colour),
        Series(named, run.points(name, smoothed), "line", colour),
    ]


def _result(run: History) -> Markup:
    steps, done = len(run.steps), run.status == "done"
    last = run.steps[-1] if run.steps else 0
    state = badge(Both("done", "完成"), kind="good") if done else badge(Both("not finished", "未完成"), kind="warn")
    losses = [value for value in run.column("loss") if value == value]
    of = str(run.section("run").get("length", ""))
    figures: list[tuple[Content, Content] | tuple[Content, Content, Content]] = [
        (Both("Steps", "步数"), number(last), of),
        (Both("Loss, smoothed", "损失(平滑)"), number(run.final_loss()), _first(losses)),
    ]
    for name, curve in list(run.evaluations("bits_per_byte").items())[:3]:
        figures.append((Both(f"Bits a byte, {name}", f"每字节比特,{name}"), number(curve[-1][1]), _best(curve)))
    for label, total, speed in (
        (Both("Tokens", "词元"), "tokens", run.rate("tokens")),
        (Both("Label tokens", "计损失词元"), "label_tokens", run.rate("label_tokens")),
    ):
        if (count := run.total(total)) is not None:
            figures.append((label, _many(count), f"{speed:,.0f} / s" if speed else ""))
    if run.has("mfu"):
        figures.append(("MFU", _percent(_weighted(run, "mfu"))))
    if (peak := run.peak_bytes) is not None:
        predicted = run.predicted_bytes
        against = Both(f"predicted {_gigabytes(predicted)}", f"预测 {_gigabytes(predicted)}") if predicted else ""
        figures.append((Both("Peak memory", "内存峰值"), _gigabytes(peak), against))
    if run.has("seconds"):
        figures.append((Both("Time in steps", "训练步用时"), _duration(run.total("seconds"))))
    return join(paragraph(state, *_notes(run, steps, done, last)), tiles(figures))


def _notes(run: History, steps: int, done: bool, last: int) -> list[Content]:
    out: list[Content] = []
    if not done:
        out.append(
            Both(
                f" The log ends at step {last}; the same command goes on from the last checkpoint.",
                f" 日志止于第 {last} 步;再次运行同一命令即从最近的检查点继续。",
            )
        )
    if run.resumes:
        listed = ", ".join(str(step) for step in run.resumes[:5]) + ", …" * (len(run.resumes) > 5)
        out.append(Both(f" Interrupted and continued behind step {listed}.", f" 曾中断并从第 {listed} 步之后继续。"))
    skipped = run.last("skipped") or 0
    if run.bad or skipped:
        listed = ", ".join(str(step) for step in run.bad[:5]) + ", …" * (len(run.bad) > 5)
        where = f" ({listed})" if listed else ""
        out.append(
            Both(
                f" {len(run.bad)} steps without finite loss or gradient{where}, {skipped:.0f} skipped.",
                f" {len(run.bad)} 步的损失或梯度非有限值{where},跳过 {skipped:.0f} 步。",
            )
        )
    if run.cut_lines:
        out.append(Both(f" Unreadable lines of the log: {run.cut_lines}.", f" 日志中无法读取的行:{run.cut_lines}。"))
    if not steps:
        out.append(Both(" No step is finished yet.", " 尚未完成任何一步。"))
    return out


def _first(losses: Sequence[float]) -> Content:
    return Both(f"first step {losses[0]:.4g}", f"首步 {losses[0]:.4g}") if losses else ""


def _best(curve: Sequence[tuple[float, float]]) -> Content:
    step, value = min(curve, key=lambda point: point[1] if point[1] == point[1] else math.inf)
    return Both(f"best {value:.4g} at step {step:.0f}", f"最佳 {value:.4g}(第 {step:.0f} 步)")


def _weighted(run: History, name: str) -> float | None:
    """Mean over time."""
    weights = run.column("seconds") if run.has("seconds") else [1.0] * len(run.steps)
    pairs = [(v, w) for v, w in zip(run.column(name), weights, strict=True) if v == v and w == w]
    whole = math.fsum(w for _, w in pairs)
    return math.fsum(v * w for v, w in pairs) / whole if whole else None


def _loss(run: History, title: Content = Both("Loss", "损失")) -> Markup:
    held = run.evaluations("loss")
    series = _pair(run, "loss", weights=run.units)
    series += [
        Series(Both(f"validation: {name}", f"验证:{name}"), points, "dots", at + 1)
        for at, (name, points) in enumerate(list(held.items())[:5])
    ]
    nats = Both("nats a label token", "奈特/计损失词元")
    parts = [_chart(run, series, title, nats, may_be_log=True)]
    bits = run.evaluations("bits_per_byte")
    if bits:
        each = [Series(name, points, "dots", at + 1) for at, (name, points) in enumerate(bits.items())]
        unit = Both("bits a byte", "比特/字节")
        parts.append(_chart(run, each, Both("Bits per byte of validation", "验证集每字节比特"), unit))
    if held or bits:
        rows: Cells = [[name, *_ends(held.get(name, [])), *_ends(bits.get(name, []))] for name in held | bits]
        heads: list[Content] = [
            Both("Validation source", "验证来源"),
            Both("loss: first", "损失:首次"),
            Both("best", "最佳"),
            Both("last", "末次"),
            Both("bits a byte: first", "比特/字节:首次"),
            Both("best", "最佳"),
            Both("last", "末次"),
        ]
        parts.append(table(heads, rows, numeric=range(1, 7)))
    return join(*parts)


def _ends(curve: Sequence[tuple[float, float]]) -> list[float | None]:
    values = [value for _, value in curve]
    if not values:
        return [None, None, None]
    return [values[0], min((value for value in values if value == value), default=math.nan), values[-1]]


def _gradient(run: History) -> Markup:
    clip = run.section("optimizer").get("clip_norm")
    norms = _chart(
        run,
        _pair(run, "grad_norm"),
        Both("Gradient norm before clipping", "裁剪前的梯度范数"),
        Both("norm", "范数"),
        Both(f"Longer gradients are scaled down to {clip:g}.", f"超过 {clip:g} 的梯度按比例缩小。")
        if isinstance(clip, int | float)
        else "",
        may_be_log=True,
    )
    rates = Markup("")
    if run.has("lr"):
        curve = [Series(STEP["lr"], run.points("lr"), "dots" if len(run.steps) < 10 else "line")]
        rates = _chart(run, curve, Both("Learning rate", "学习率"), "", from_zero=True)
    scale = Markup("")
    if run.has("loss_scale"):
        curve = [Series(STEP["loss_scale"], run.points("loss_scale"))]
        scale = _chart(run, curve, Both("Loss scale (float16)", "损失缩放(float16)"), "", may_be_log=True)
    return join(norms, rates, scale)


def _speed(run: History) -> Markup:
    rates = _pair(run, "tokens_per_second", weights="seconds")
    rates += _pair(run, "label_tokens_per_second", colour=1, weights="seconds")
    whole = Both("Tokens a second", "每秒词元")
    parts = [_chart(run, rates, whole, Both("tokens a second", "词元/秒"), from_zero=True)]
    if run.has("padded_share"):
        padded = _pair(run, "padded_share", weights="seconds")
        told = Both("Computed places without a token of any row.", "计算中不属于任何数据行的位置。")
        parts.append(_chart(run, padded, Both("Padded share", "填充占比"), "", told, from_zero=True, percent=True))
    if run.has("mfu"):
        parts.append(_chart(run, _pair(run, "mfu", weights="seconds"), "MFU", "", MFU, from_zero=True, percent=True))
    return join(*parts)


def _memory(run: History) -> Markup:
    predicted, peak = run.predicted_bytes, run.peak_bytes
    both = [
        Series(STEP[name], run.points(name, [value / 1e9 for value in run.column(name)]))
        for name in ("resident_bytes", "peak_bytes")
        if run.has(name)
    ]
    limit = predicted / 1e9 if predicted else None
    foreseen = Both("predicted peak", "预测峰值")
    drawn = _chart(run, both, Both("Memory", "内存"), "GB", from_zero=True, limit=limit, limit_label=foreseen)
    lines = run.memory()
    if not lines:
        return drawn
    rows: Cells = [[line.name, _gigabytes(line.predicted), _gigabytes(line.measured), line.formula] for line in lines]
    ratio = f"{peak / predicted - 1:+.1%}".replace("%", " %") if peak and predicted else ""
    whole = Both(f"measured against predicted: {ratio}", f"实测相对预测:{ratio}") if ratio else ""
    rows.append([Both("Peak", "峰值"), _gigabytes(predicted), _gigabytes(peak), whole])
    heads: list[Content] = [
        Both("Line", "项目"),
        Both("Predicted", "预测"),
        Both("Measured", "实测"),
        Both("From", "计算依据"),
    ]
    return join(drawn, table(heads, rows, numeric=(1, 2)))


def _metrics(run: History) -> Markup:
    """What the objective says beside its loss."""
    names = [name for name in run.columns if name not in STEP and name not in COUNTS and run.has(name)]
    drawn = [_chart(run, _pair(run, name, weights=run.units), name, "") for name in names[:SHOWN_METRICS]]
    return join(*drawn)


def _samples(run: History) -> Markup:
    """Continuations of each prompt; of many evaluations some, first and last among them."""
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for line in run.events.get("sample", []):
        by_prompt.setdefault(str(line.get("prompt", "")), []).append(line)
    parts = []
    for prompt, lines in by_prompt.items():
        chosen = _spread(lines, SHOWN_SAMPLES)
        rows: Cells = [
            [int(line["step"]), Markup('<div class="sample">{}</div>').format(_said(line))] for line in chosen
        ]
        some = Both(f"{len(chosen)} of {len(lines)} evaluations", f"{len(lines)} 次评估中的 {len(chosen)} 次")
        shown = table(
            [STEPS, Both("Continuation", "续写")], rows, numeric=(0,), caption=_if(len(chosen) < len(lines), some)
        )
        parts.append(Markup('<h3 class="sample">{}</h3>{}').format(prompt, shown))
    if not parts:
        return Markup("")
    style = Markup("<style>.sample { white-space: pre-wrap; overflow-wrap: anywhere; }</style>")
    told = Both("Continued greedily at each evaluation.", "每次评估时贪心解码续写。")
    return join(style, paragraph(told), *parts)


def _if(condition: bool, content: Content) -> Content:
    return content if condition else ""


def _said(line: dict[str, Any]) -> Content:
    text = str(line.get("text", ""))
    return text if text.strip() else Both("(nothing)", "(空)")


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many, evenly, with the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(at * (len(items) - 1) / (most - 1))] for at in range(most)]


def _rows(run: History) -> Markup:
    left = run.left_out()
    told: dict[str, Any] = next(reversed(run.events.get("rows", [])), {})
    kept, out = (told.get(name) for name in ("kept", "left_out"))
    if not left:
        if out is None and not run.result:
            return Markup("")
        some = Both(f"{out or 0} rows, {kept or '–'} are learned.", f"{out or 0} 行,用于训练 {kept or '–'} 行。")
        return paragraph(some if out else Both("None: every row is learned.", "无:所有数据行都用于训练。"))
    rows: Cells = [[reason, count] for reason, count in left.items()]
    parts = [table([Both("Reason", "原因"), Both("Rows", "行数")], rows[:SHOWN_ROWS], numeric=(1,))]
    if run.bad_rows:
        each: Cells = [
            [f"{Path(str(row.get('file', ''))).name}:{row.get('line', '')}", *(str(row.get(k, "")) for k in KEYS)]
            for row in run.bad_rows[:SHOWN_ROWS]
        ]
        heads: list[Content] = [Both("File and line", "文件与行"), Both("Reason", "原因"), Both("Detail", "细节")]
    else:
        each = [list(pair) for pair in run.dropped[:SHOWN_ROWS]]
        heads = [Both("Row", "数据行"), Both("Reason", "原因")]
    if each:
        title = Both(f"{len(each)} of them", f"其中 {len(each)} 行")
        parts.append(details(title, table(heads, each)))
    return join(*parts)


KEYS = ("reason", "detail")


def _checkpoints(run: History) -> Markup:
    written = {int(line["step"]): line for line in run.events.get("checkpoint", [])}
    steps = sorted(written.keys() | set(run.stored))
    if not steps:
        return Markup("")
    here = badge(Both("on disk", "在磁盘上"), kind="good")
    rows: Cells = []
    for step in _spread(steps, SHOWN_ROWS):
        line = written.get(step, {})
        seconds = line.get("seconds")
        rows.append(
            [
                step,
                f"{seconds:.2f}\u00a0s" if isinstance(seconds, int | float) else "–",
                here if step in run.stored else "",
            ]
        )
    heads: list[Content] = [STEPS, Both("Training waited", "训练等待"), ""]
    return table(heads, rows, numeric=(0, 1))


def _settings(run: History) -> Markup:
    if not run.settings:
        return Markup("")
    own, usual = flat(run.settings), _defaults(run.settings)
    changed: Cells = [
        [name, _value(value), _value(usual.get(name))]
        for name, value in own.items()
        if usual.get(name) != value and (name in usual or value not in ("", None, [], {}))
    ]
    heads: list[Content] = [Both("Key", "键"), Both("Value", "值"), Both("Default", "默认")]
    shown = table(heads, changed, caption=Both("What differs from the defaults", "与默认值不同的设置"))
    whole = yaml.safe_dump(run.settings, sort_keys=False, allow_unicode=True)
    notes = [paragraph(str(note)) for note in _list(run.plan.get("notes")) if isinstance(note, str)]
    return join(shown, *notes, details(Both("The whole recipe", "完整配置"), code_block(whole, language="yaml")))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _value(value: Any) -> str:
    if value is None:
        return "–"
    return (
        str(value).lower()
        if isinstance(value, bool)
        else ", ".join(map(str, value))
        if isinstance(value, list)
        else str(value)
    )


def _defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """The recipe that names only model, data and objective; empty where this version cannot read it."""
    from riverrun.base.errors import RiverrunError
    from riverrun.train.recipe import TrainConfig

    objective, data, model = (settings.get(key) or {} for key in ("objective", "data", "model"))
    try:
        least: dict[str, Any] = {
            "model": {key: model[key] for key in ("path", "new") if model.get(key)},
            "data": {"train": [{"path": source["path"]} for source in data["train"]]},
            "objective": {"name": objective["name"]} if objective else {"name": "sft"},
        }
        whole = flat(TrainConfig.model_validate(least).model_dump(mode="json"))
    except (ValueError, TypeError, KeyError, AttributeError, RiverrunError):
        return {}
    return {
        name: value
        for name, value in whole.items()
        if not name.startswith(("model.path", "model.new", "objective.name")) and not name.endswith(".path")
    }
