"""The chain's own sentences in English and Chinese; RIVERRUN_LANG=zh chooses. Errors of other rooms stay English."""

from __future__ import annotations

import os

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
    "until": ("stopped after {stage}, as asked (--until)", "按 --until 的要求在 {stage} 后停止"),
    "finished": ("report: {path}", "报告:{path}"),
    "error": ("error", "错误"),
    "interrupted": ("interrupted; run the same command again to continue", "已中断;再次运行同一命令即可继续"),
}


def language() -> str:
    """ "zh" when RIVERRUN_LANG starts with zh, else "en"."""
    return "zh" if os.environ.get("RIVERRUN_LANG", "").lower().startswith("zh") else "en"


def word(key: str, **values: object) -> str:
    """One sentence in the chosen language."""
    english, chinese = _WORDS[key]
    return (chinese if language() == "zh" else english).format(**values)
