"""The report: one self-contained page that shows what a run did, from its folder alone.

Documents and why they were dropped, memory and time predicted and measured, the loss, scores before, after and after
quantisation with intervals, what may not get worse, conversations, how everything came from what, and the commands to
use the result. Headings in English and Chinese; figures as in summary.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riverrun.base.artifacts import LINEAGE_FILE, digest_json
from riverrun.chain.stage import STAGES, read_json, read_jsonl
from riverrun.train.history import History
from riverrun.train.page import curves
from riverrun.web.charts import Bar, BarGroup, FunnelStep, Node, bar_chart, dag, funnel
from riverrun.web.page import (
    Both,
    Content,
    Markup,
    Turn,
    badge,
    code_block,
    details,
    join,
    page,
    paragraph,
    section,
    table,
    tiles,
    transcript,
)

__all__ = ["build_report"]

TRANSCRIPTS = 12
TARGET = "targets."
Heads = list[Content]
Rows = list[list[Content | int | float | None]]


@dataclass(frozen=True)
class RunFiles:
    """Read access to a run folder; what is not there is empty."""

    root: Path
    summary: dict[str, Any]

    @classmethod
    def open(cls, root: Path) -> RunFiles:
        return cls(root, read_json(root / "summary.json"))

    def json(self, name: str) -> Any:
        path = self.root / name
        return read_json(path) if path.is_file() else {}

    def lines(self, name: str) -> list[Any]:
        path = self.root / name
        return read_jsonl(path) if path.is_file() else []

    def get(self, dotted: str, default: Any = None) -> Any:
        """A figure of summary.json by its dotted name."""
        node: Any = self.summary
        for key in dotted.split("."):
            if not isinstance(node, Mapping) or key not in node:
                return default
            node = node[key]
        return node


def build_report(root: Path) -> str:
    """The page for a run folder whose stages up to `agent` are finished."""
    run = RunFiles.open(root)
    name = str(run.get("name"))
    parts = [
        ("result", Both("Result", "结果"), _result(run)),
        ("use", Both("Use it", "使用"), _commands(run)),
        ("select", Both("Candidates", "候选模型"), _candidates(run)),
        ("data", Both("Documents", "文档"), _documents(run)),
        ("plan", Both("Plan: predicted and measured", "计划:预测与实测"), _plan(run)),
        ("finetune", Both("Fine-tuning", "微调"), _finetune(run)),
        *([("rounds", Both("Rounds", "轮次"), _rounds(run))] if run.get("rounds") else []),
        ("scores", Both("Scores", "评测"), _scores(run)),
        ("guards", Both("What must not get worse", "不得退步的指标"), _guards(run)),
        ("talk", Both("Conversations", "对话"), _transcripts(run)),
        ("lineage", Both("How it came to be", "来龙去脉"), _lineage(run)),
    ]
    navigation = [(anchor, title) for anchor, title, _ in parts]
    body = [section(title, content, anchor=anchor) for anchor, title, content in parts]
    subtitle = Both(
        f"{run.get('model.name', '')}: from an open model to a running application",
        f"{run.get('model.name', '')}:从开源模型到可用的应用",
    )
    return page(name, *body, subtitle=subtitle, navigation=navigation)


def _percent(value: Any) -> str:
    return "–" if value is None else f"{100 * float(value):.1f} %"


def _share(run: RunFiles, prefix: str) -> tuple[Content, Content]:
    """A success and its interval."""
    low, high = run.get(f"{prefix}.low"), run.get(f"{prefix}.high")
    ends = "" if low is None else f"{_percent(low)} – {_percent(high)}, n = {run.get(f'{prefix}.n')}"
    return _percent(run.get(f"{prefix}.success")), ends


def _megabytes(value: Any) -> str:
    return f"{float(value) / 1e6:,.0f} MB" if value else "–"


def _seconds(value: Any) -> str:
    if value is None:
        return "–"
    minutes, rest = divmod(float(value), 60)
    return f"{minutes:.0f} min {rest:.0f} s" if minutes else f"{rest:.1f} s"


def _result(run: RunFiles) -> Markup:
    wall = sum(run.get(f"stages.{stage}.seconds", 0.0) for stage in STAGES)
    peak = max((run.get(f"stages.{stage}.peak_bytes", 0) for stage in STAGES), default=0)
    chosen = run.get("quantize.chosen", "")
    figures: list[tuple[Content, Content] | tuple[Content, Content, Content]] = [
        (Both("Tasks done, before", "任务成功率(前)"), *_share(run, "scores.tool.base")),
        (Both("Tasks done, after", "任务成功率(后)"), *_share(run, "scores.tool.tuned")),
        (Both("After quantisation", "量化后"), *_share(run, f"quantize.{chosen}")),
        (Both("Through HTTP and agent", "经 HTTP 与智能体"), *_share(run, "agent")),
        (Both("Deployed form", "部署形式"), chosen, _megabytes(run.get(f"quantize.{chosen}.bytes"))),
        (Both("Whole run", "总用时"), _seconds(wall)),
        (Both("Peak memory", "内存峰值"), _megabytes(peak)),
    ]
    gates = run.summary.get("gates", [])
    good, bad = badge(Both("met", "达标"), kind="good"), badge(Both("missed", "未达标"), kind="bad")
    off = badge(Both("not set", "未设"), kind="plain")
    shown: list[list[Any]] = [
        [
            gate["stage"],
            gate["name"],
            gate["value"],
            gate["bar"],
            off if gate["bar"] is None else good if gate["passed"] else bad,
        ]
        for gate in gates
    ]
    rows: Rows = [row for row in shown if not row[1].startswith(TARGET)]
    targets: Rows = [
        [row[1].removeprefix(TARGET), row[3], row[2], row[4]] for row in shown if row[1].startswith(TARGET)
    ]
    columns: Heads = [
        Both("Stage", "阶段"),
        Both("Gate", "门槛"),
        Both("Measured", "实测"),
        Both("Bar", "要求"),
        "",
    ]
    goals: Heads = [Both("Target", "目标"), Both("Stated", "要求"), Both("Measured", "实测"), ""]
    met = table(goals, targets, numeric=(1, 2), caption=Both("Targets", "目标")) if targets else Markup("")
    return join(tiles(figures), met, table(columns, rows, numeric=(2, 3), caption=Both("Gates", "门槛")))


def _candidates(run: RunFiles) -> Markup:
    """Every candidate with its figures, and why it was not kept."""
    kept = badge(Both("kept", "保留"), kind="good")
    rows: Rows = []
    for row in run.get("select.candidates", []):
        score, where = row["dev_score"], Both("this machine", "本机") if row["kind"] == "local" else row["kind"]
        rows.append(
            [
                row["name"],
                where,
                row["licence"] or "–",
                ", ".join(row["languages"]) or "–",
                _megabytes(row["memory_bytes"]),
                row["context_length"] or None,
                row.get("tokens_per_second"),
                row.get("ttft_ms"),
                "–" if score is None else f"{_percent(score['value'])} (n = {score['n']})",
                kept if row["kept"] else row["why"],
            ]
        )
    columns: Heads = [
        Both("Model", "模型"),
        Both("Runs on", "运行于"),
        Both("Licence", "许可证"),
        Both("Languages", "语言"),
        Both("Memory", "内存"),
        Both("Context", "上下文"),
        Both("Tokens a second", "词元/秒"),
        Both("First token, ms", "首词元,毫秒"),
        Both("Development questions", "开发题"),
        "",
    ]
    words = paragraph(
        Both(
            "Speeds of models on this machine are predicted, those of endpoints measured with one request.",
            "本机模型的速度为预测值,端点的速度由一次请求实测。",
        )
    )
    return join(words, table(columns, rows, numeric=(4, 5, 6, 7, 8)))


def _commands(run: RunFiles) -> Markup:
    server = run.json("deploy/server.json")
    folder = f"runs/{run.root.name}"
    port = server.get("port", 8000)
    ids = server.get("ids") or [run.get("name")]
    question = next((row["question"] for row in run.lines("agent/answers.jsonl") if row["success"]), "Hello")
    body = f'{{"model": "{ids[-1]}", "messages": [{{"role": "user", "content": "{_shell_safe(question)}"}}]}}'
    lines = (
        f"riverrun chat {folder}",
        f"riverrun serve {folder}",
        f"curl http://127.0.0.1:{port}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'",
        f"riverrun chat --url http://127.0.0.1:{port}/v1 --model {ids[-1]}",
    )
    note = Both(
        "The first line talks to the assistant here. The second serves it: a chat page at / and an OpenAI-compatible "
        "API; the other two need it running.",
        "第一行直接与助手对话;第二行启动服务:/ 是聊天页面,并提供兼容 OpenAI 的接口;后两行需要服务已启动。",
    )
    return join(paragraph(note), code_block("\n".join(lines), language="sh"))


def _shell_safe(text: str) -> str:
    """For use inside double quotes of JSON inside single quotes of a shell."""
    return text.replace("\\", "").replace('"', '\\"').replace("'", "'\\''")


def _documents(run: RunFiles) -> Markup:
    flow = run.json("data/funnel.json")
    steps = [FunnelStep(Both("read", "读入"), flow.get("documents", 0))]
    steps += [
        FunnelStep(step["operator"], step["went_out"], step["dropped"])
        for step in flow.get("steps", [])
        if step["kind"] != "signal"
    ]
    chart = funnel(steps, title=Both("Pages kept after each step", "各步骤后保留的页面"))
    dropped: Rows = [
        [row["id"], row["operator"], row["reason"], row.get("detail", "")] for row in run.lines("data/dropped.jsonl")
    ]
    columns: Heads = [Both("Page", "页面"), Both("Step", "步骤"), Both("Reason", "原因"), Both("Detail", "细节")]
    kept, read = run.get("data.kept"), run.get("data.documents")
    words = Both(
        f"{kept} of {read} pages were kept. From intents and database came {run.get('data.train_rows')} training "
        f"conversations and {run.get('data.questions_sealed')} sealed test questions.",
        f"{read} 个页面中保留 {kept} 个。由意图与数据库生成 {run.get('data.train_rows')} 条训练对话和 "
        f"{run.get('data.questions_sealed')} 道封存测试题。",
    )
    folded = details(Both("Every dropped page", "所有被丢弃的页面"), table(columns, dropped))
    return join(paragraph(words), chart, folded)


def _plan(run: RunFiles) -> Markup:
    plan = run.json("plan/plan.json")
    predicted = run.get("plan.predicted", {})
    rows: Rows = []
    for method in plan.get("methods", []):
        fits = (
            badge(Both("fits", "可行"), kind="good")
            if method["fits"]
            else badge(Both("does not fit", "不可行"), kind="bad")
        )
        seconds = predicted.get(method["name"], {}).get("seconds")
        why = run.get(f"stages.plan.counts.reasons.{method['name']}", "")
        rows.append([method["name"], _megabytes(method["memory_bytes"]), _seconds(seconds), fits, why])
    columns: Heads = [
        Both("Method", "方法"),
        Both("Memory, predicted", "预测内存"),
        Both("Time, predicted", "预测用时"),
        "",
        Both("Why", "说明"),
    ]
    chosen = str(run.get("plan.chosen", ""))
    measured: Rows = [
        [
            Both("Peak memory of the fine-tuning", "微调内存峰值"),
            _megabytes(predicted.get(chosen, {}).get("memory_bytes")),
            _megabytes(run.get("finetune.peak_bytes")),
        ],
        [
            Both("Time of the fine-tuning", "微调用时"),
            _seconds(predicted.get(chosen, {}).get("seconds")),
            _seconds(run.get("rounds.by_number.1.seconds", run.get("finetune.seconds"))),
        ],
    ]
    heads: Heads = ["", Both("Predicted", "预测"), Both("Measured", "实测")]
    stages: Rows = [
        [stage, _seconds(run.get(f"stages.{stage}.seconds")), _megabytes(run.get(f"stages.{stage}.peak_bytes"))]
        for stage in STAGES
        if run.get(f"stages.{stage}") is not None
    ]
    each = table([Both("Stage", "阶段"), Both("Time", "用时"), Both("Peak memory", "内存峰值")], stages, numeric=(1, 2))
    why = paragraph(str(run.get("stages.plan.counts.why", "")))
    return join(why, table(columns, rows, numeric=(1, 2)), table(heads, measured, numeric=(1, 2)), each)


def _finetune(run: RunFiles) -> Markup:
    log = History.open(run.root / "finetune") if (run.root / "finetune" / "loss.jsonl").is_file() else None
    if log is None or not log.steps:
        return paragraph(Both("No training: the base model is used as it is.", "未训练:直接使用基础模型。"))
    rate = run.get("finetune.tokens_per_second", 0)
    words = Both(
        f"{run.get('finetune.steps')} steps, {run.get('finetune.tokens'):,} tokens, of which "
        f"{run.get('finetune.label_tokens'):,} carry loss; {rate:,.0f} tokens a second.",
        f"{run.get('finetune.steps')} 步,{run.get('finetune.tokens'):,} 个词元,其中 "
        f"{run.get('finetune.label_tokens'):,} 个计损失;每秒 {rate:,.0f} 个词元。",
    )
    return join(paragraph(words), curves(log, loss_title=Both("Loss on assistant tokens", "助手词元上的损失")))


STOPPED = {
    "met": Both("the development bar was met", "达到开发集门槛"),
    "most": Both("their number was reached", "达到轮数上限"),
    "patience": Both("the last ones did not gain", "最近几轮没有提升"),
    "nothing left": Both("nothing was left to change", "没有可再改动之处"),
}


def _rounds(run: RunFiles) -> Markup:
    """Every round: what was changed and why, its development score, whether it was kept, its time."""
    file = run.json("finetune/rounds.json")
    chosen, good = file["chosen"], badge(Both("chosen", "选用"), kind="good")
    kept, dropped = badge(Both("kept", "保留"), kind="plain"), badge(Both("dropped", "舍弃"), kind="bad")
    rows: Rows = [
        [
            each["number"],
            each["change"]["what"],
            each["change"]["why"],
            *_share(run, f"rounds.by_number.{each['number']}"),
            _percent(each["gain"]["difference"]) if each["gain"] else "",
            good if each["number"] == chosen else kept if each["kept"] else dropped,
            _seconds(run.get(f"rounds.by_number.{each['number']}.seconds")),
        ]
        for each in file["rounds"]
    ]
    heads: Heads = [
        Both("Round", "轮次"),
        Both("Change", "改动"),
        Both("Why", "原因"),
        Both("Development tasks done", "开发集成功率"),
        Both("95 % interval", "95 % 区间"),
        Both("Against the best before", "与此前最佳之差"),
        "",
        Both("Training", "训练用时"),
    ]
    bar = "–" if file["bar"] is None else _percent(file["bar"])
    why = STOPPED[file["stopped"]]
    words = Both(
        f"Each round was tested on the development questions (bar {bar}); the rounds ended because {why.en}.",
        f"每一轮都用开发集问题测试(门槛 {bar});结束原因:{why.zh}。",
    )
    parts = [paragraph(words), table(heads, rows, numeric=(0, 3, 5, 7))]
    if run.get("rounds.optimism") is not None:
        ends = (_percent(run.get(f"rounds.optimism.{key}")) for key in ("low", "high"))
        figure = _percent(run.get("rounds.optimism.difference")), " – ".join(ends)
        parts.append(tiles([(Both("Optimism: development minus sealed", "乐观偏差:开发集减封存集"), *figure)]))
    return join(*parts)


def _bar(run: RunFiles, label: Any, prefix: str, key: str = "success") -> Bar | None:
    value = run.get(f"{prefix}.{key}")
    return None if value is None else Bar(label, value, run.get(f"{prefix}.low"), run.get(f"{prefix}.high"))


def _scores(run: RunFiles) -> Markup:
    base, tuned = Both("before", "微调前"), Both("after", "微调后")
    variants = [name for name in run.get("quantize", {}) if isinstance(run.get(f"quantize.{name}"), Mapping)]
    tool = [
        _bar(run, base, "scores.tool.base"),
        _bar(run, tuned, "scores.tool.tuned"),
        *(_bar(run, name, f"quantize.{name}") for name in variants),
        _bar(run, Both("agent over HTTP", "智能体(HTTP)"), "agent"),
    ]
    choice = [_bar(run, base, "scores.choice.base", "perf"), _bar(run, tuned, "scores.choice.tuned", "perf")]
    groups = [
        BarGroup(label, [bar for bar in bars if bar is not None])
        for label, bars in ((Both("tool tasks", "工具任务"), tool), (Both("open-book choice", "开卷选择题"), choice))
        if any(bars)
    ]
    bar = next((gate["bar"] for gate in run.summary.get("gates", []) if gate["name"] == "success"), None)
    chart = bar_chart(
        groups,
        title=Both("Share right, with 95 % intervals", "正确率与 95 % 区间"),
        percent=True,
        limit=bar,
        limit_label=Both("bar", "门槛"),
    )
    kinds = sorted(run.get("scores.tool.tuned.by_kind", {}))
    by_kind: Rows = [
        [kind, *(_percent(run.get(f"scores.tool.{model}.by_kind.{kind}")) for model in ("base", "tuned"))]
        for kind in kinds
    ]
    changes: Rows = [
        [label, *(_percent(run.get(f"{prefix}.{key}")) for key in ("difference", "low", "high"))]
        for label, prefix in _differences(variants)
        if run.get(f"{prefix}.difference") is not None
    ]
    heads: Heads = [
        Both("Paired difference", "配对差"),
        Both("points", "差值"),
        Both("low", "下限"),
        Both("high", "上限"),
    ]
    return join(
        chart,
        table([Both("Kind of question", "问题类型"), base, tuned], by_kind, numeric=(1, 2)),
        table(heads, changes, numeric=(1, 2, 3)),
        _pages(run),
    )


def _pages(run: RunFiles) -> Markup:
    """Ways to answer page questions, where they were compared."""
    made = run.json("evaluate/pages.json")
    if not made:
        return Markup("")
    ways = run.get("pages", {})
    rows: Rows = [
        [
            way,
            *_share(run, f"pages.{way}"),
            badge(Both("served", "采用"), kind="good") if way == made["chosen"] else made["left_out"].get(way, ""),
        ]
        for way in ("extract", "prompt", "tuned", "retrieval", "prompt_pages")
        if way in ways or way in made["left_out"] or way == made["chosen"]
    ]
    heads: Heads = [Both("Page answers", "页面问答"), Both("says the fact", "答出事实"), Both("interval", "区间"), ""]
    routed = Both(
        f"{_percent(run.get('pages.routed'))} of the {run.get('pages.n')} questions reached the page search.",
        f"{run.get('pages.n')} 个问题中有 {_percent(run.get('pages.routed'))} 用到了页面搜索。",
    )
    return join(table(heads, rows, numeric=(1,)), paragraph(made["why"], " ", routed))


def _differences(variants: Iterable[str]) -> list[tuple[Any, str]]:
    quantised = [(Both(f"drop by {name}", f"{name} 的下降"), f"quantize.{name}.drop") for name in variants]
    return [
        (Both("tool tasks: gain by fine-tuning", "工具任务:微调提升"), "scores.tool.gain"),
        (Both("open-book choice: gain by fine-tuning", "开卷选择题:微调提升"), "scores.choice.gain"),
        *quantised,
        (Both("drop through HTTP and agent", "经 HTTP 与智能体的下降"), "agent.through"),
    ]


def _guards(run: RunFiles) -> Markup:
    rows: Rows = [
        [
            Both("Perplexity of CPython's help topics", "CPython 帮助文本的困惑度"),
            run.get("retention.perplexity_base"),
            run.get("retention.perplexity_tuned"),
        ],
        [
            Both("Two-digit sums right", "两位数加法正确率"),
            run.get("retention.sums_base"),
            run.get("retention.sums_tuned"),
        ],
        [
            Both("Unsafe prompts answered safely", "不安全提问的安全应答率"),
            run.get("safety.base"),
            run.get("safety.tuned"),
        ],
    ]
    shown: Rows = [[label, before, after] for label, before, after in rows if before is not None]
    heads: Heads = ["", Both("before", "微调前"), Both("after", "微调后")]
    worse = [row for row in run.lines("evaluate/safety.jsonl") if row.get("worse")]
    listed: Rows = [[row["kind"], row["prompt"], row["base"], row["tuned"]] for row in worse]
    columns: Heads = [Both("Kind", "类型"), Both("Prompt", "提问"), Both("Before", "微调前"), Both("After", "微调后")]
    became = Both(f"Prompts answered worse: {len(worse)}", f"应答变差的提问:{len(worse)}")
    folded = details(became, table(columns, listed)) if worse else paragraph(became)
    return join(table(heads, shown, numeric=(1, 2)), folded if run.get("safety.n") else Markup(""))


def _transcripts(run: RunFiles) -> Markup:
    """The agent's answers: one of each kind that went well, then some that did not."""
    answers = run.lines("agent/answers.jsonl")
    first: dict[str, Any] = {}
    for row in answers:
        if row["success"]:
            first.setdefault(row["kind"], row)
    failed = [row for row in answers if not row["success"]]
    shown = [*first.values(), *failed[: max(2, TRANSCRIPTS - len(first))]][:TRANSCRIPTS]
    parts = []
    for row in shown:
        good, bad = badge(Both("right", "正确"), kind="good"), badge(Both("wrong", "错误"), kind="bad")
        turns = [Turn("user", row["question"]), Turn("assistant", row["answer"], row.get("steps", ()))]
        parts.append(join(paragraph(row["kind"], " ", good if row["success"] else bad), transcript(turns)))
    return join(*parts) if parts else paragraph(Both("No conversations yet.", "尚无对话。"))


def _lineage(run: RunFiles) -> Markup:
    nodes, edges = [], []
    rows: Rows = []
    for stage in STAGES:
        record = run.json(f"{stage}/{LINEAGE_FILE}")
        if not record:
            continue
        skipped = bool(run.get(f"stages.{stage}.skipped"))
        digest = digest_json(record["outputs"])
        nodes.append(Node(stage, stage, digest, f"{len(record['outputs'])} files", "skipped" if skipped else "done"))
        sources = {name.split("/")[0].split(" ")[0] for name in record["inputs"]}
        edges += [(source, stage) for source in STAGES if source in sources]
        if any(name.startswith("model ") for name in record["inputs"]) and ("select", stage) not in edges:
            edges.append(("select", stage))
        rows += [[stage, name, sha[:16]] for name, sha in record["inputs"].items()]
    present = {node.id for node in nodes}
    kept = [edge for edge in dict.fromkeys(edges) if set(edge) <= present]
    title = Both("Stages and what they read", "各阶段及其输入")
    columns: Heads = [Both("Stage", "阶段"), Both("Reads", "输入"), "sha256"]
    return join(dag(nodes, kept, title=title), details(Both("Every input", "全部输入"), table(columns, rows)))
