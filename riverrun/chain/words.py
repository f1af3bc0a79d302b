"""The chain's own sentences in English and Chinese; RIVERRUN_LANG=zh chooses. Errors of other rooms stay English."""

from __future__ import annotations

import os
from typing import Literal

__all__ = ["language", "word"]

_WORDS: dict[str, tuple[str, str]] = {
    "start": ("[{n}/{total}] {stage} ...", "[{n}/{total}] {stage} 开始"),
    "done": (
        "[{n}/{total}] {stage} done in {seconds:.1f} s{memory}",
        "[{n}/{total}] {stage} 完成,用时 {seconds:.1f} 秒{memory}",
    ),
    "memory": (", peak memory {megabytes:.0f} MB", ",内存峰值 {megabytes:.0f} MB"),
    "skip": ("[{n}/{total}] {stage} unchanged, skipped", "[{n}/{total}] {stage} 无变化,跳过"),
    "again": ("{stage}: {reason}; it runs again", "{stage}:{reason};重新运行"),
    "resume": ("{stage}: continuing what was interrupted", "{stage}:继续上次中断的工作"),
    "round": (
        "  round {number}, {change}: {share:.1f} % of {count} development questions",
        "  第 {number} 轮({change}):{count} 道开发题答对 {share:.1f} %",
    ),
    "dropped": ("  no gain over round {best}: dropped", "  比第 {best} 轮没有提升:舍弃"),
    "until": ("stopped after {stage}, as asked (--until)", "按 --until 的要求在 {stage} 后停止"),
    "finished": ("report: {path}", "报告:{path}"),
    "talk": ("talk to it:", "与它对话:"),
    "serve": ("serve it:  ", "部署服务:"),
    "preview": ("{name} into {out}; nothing is done", "{name},输出到 {out};仅预览,不执行"),
    "machine": (
        "{cores} cores, {gigabytes:.1f} GB to plan for, {rate:.0f} GFLOP/s in {dtype}",
        "{cores} 核,可用内存 {gigabytes:.1f} GB,{dtype} 算力 {rate:.0f} GFLOP/s",
    ),
    "chosen": ("chosen: {method}: {why}", "选择:{method}:{why}"),
    "total": (
        "peak {gigabytes:.2f} GB, about {minutes:.0f} minutes (estimated from the intents; the plan stage counts)",
        "内存峰值 {gigabytes:.2f} GB,约 {minutes:.0f} 分钟(按意图估计,plan 阶段会精确计数)",
    ),
    "there": (" (done before)", "(已完成)"),
    "here": ("on this machine", "已在本机"),
    "elsewhere": ("at {url}", "位于 {url}"),
    "to_fetch": ("{megabytes:.0f} MB to fetch", "需下载 {megabytes:.0f} MB"),
    "no_licence": ("licence not stated", "许可证未注明"),
    "refused": ("; refused, allowed: {allowed}", ";不允许使用,允许的许可证:{allowed}"),
    "no_model": (
        "no candidate is on this machine yet: fetch one (riverrun hub get NAME) to see memory and time",
        "本机尚无候选模型:先获取一个(riverrun hub get 名称)才能预测内存与用时",
    ),
    "error": ("error", "错误"),
    "interrupted": ("interrupted; run the same command again to continue", "已中断;再次运行同一命令即可继续"),
}


def language() -> Literal["en", "zh"]:
    """ "zh" when RIVERRUN_LANG starts with zh, else "en"."""
    return "zh" if os.environ.get("RIVERRUN_LANG", "").lower().startswith("zh") else "en"


def word(key: str, **values: object) -> str:
    """One sentence in the chosen language."""
    english, chinese = _WORDS[key]
    return (chinese if language() == "zh" else english).format(**values)
