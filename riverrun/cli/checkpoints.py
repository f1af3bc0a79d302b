"""`riverrun models list | info | convert | merge`: thin lines over the models room."""

from __future__ import annotations

from pathlib import Path

from riverrun.base.errors import InputError
from riverrun.cli.target import model_path

__all__ = ["convert_command", "info_command", "list_command", "merge_command"]

FORMATS = ("hf", "gguf", "awq", "gptq", "gptq_v2", "group4")


def list_command() -> None:
    from riverrun.models.presets import load_preset, preset_names

    for name in preset_names():
        config = load_preset(name)
        print(f"{name:18} {config.model_type:12} {config.num_parameters():>15,} parameters  {_context(config.longest)}")


def _context(longest: int | None) -> str:
    return "no fixed longest context" if longest is None else f"context {longest:,}"


def info_command(target: str) -> None:
    from riverrun.models.load import load_config, quantization_of
    from riverrun.models.presets import load_preset, preset_names

    if target in preset_names() and not Path(target).exists():
        config, path = load_preset(target), None
    else:
        path = model_path(target)
        config = load_config(path)
    count = config.num_parameters()
    print(f"{config.model_type}, {count:,} parameters, {_context(config.longest)}")
    print(
        f"{config.num_hidden_layers} layers, hidden {config.hidden_size}, {config.num_attention_heads} query and "
        f"{config.num_key_value_heads} key heads of {config.head_dim}, feed-forward {config.intermediate_size}, "
        f"vocabulary {config.vocab_size}{', tied head' if config.tie_word_embeddings else ''}"
    )
    if config.rope_scaling is not None:
        print(f"rotary scaling {config.rope_scaling.rope_type}, factor {config.rope_scaling.factor:g}")
    if config.windows:
        sliding = sum(window is not None for window in config.windows)
        print(f"{sliding} layers see the last {config.sliding_window} tokens")
    if path is None:
        return
    files = [path] if path.is_file() else sorted([*path.rglob("*.safetensors"), *path.rglob("*.gguf")])
    bundle = not path.is_file() and not (path / "config.json").is_file()
    quantization = None if path.is_file() or bundle else quantization_of(path)
    method = f", {quantization.get('quant_method')}" if quantization else ""
    print(f"{path}: {sum(file.stat().st_size for file in files) / 1e9:.2f} GB in {len(files)} files{method}")


def convert_command(
    source: str, target: Path, to: str, kind: str, family: str, dtype: str, group_size: int, shard: float
) -> None:
    from riverrun.models.convert import convert_to_gguf, convert_to_groups, convert_to_hf

    if to not in FORMATS:
        raise InputError(f"--to {to} is not written, written: {', '.join(FORMATS)}")
    given = {"--kind": kind, "--family": family, "--dtype": dtype, "--group-size": group_size, "--shard-gb": shard}
    used = {"hf": {"--family", "--dtype", "--shard-gb"}, "gguf": {"--kind"}}.get(to, {"--group-size"})
    if wrong := [option for option, value in given.items() if value and option not in used]:
        raise InputError(f"{wrong[0]} has no effect with --to {to}: leave it out")
    path = model_path(source)
    if to == "gguf":
        config = convert_to_gguf(path, target, kind=kind or "Q8_0")
    elif to == "hf":
        config = convert_to_hf(path, target, family=family, dtype=dtype, shard_bytes=int(shard * 1e9))
    else:
        config = convert_to_groups(path, target, to, group_size=group_size or 128)
    print(f"{target}: {config.model_type}, {config.num_parameters():,} parameters")


def merge_command(model: str, adapter: Path, target: Path, mode: str, base: str, probes: Path | None) -> None:
    from riverrun.models.merge import MODES, PROBES, merge

    if mode not in MODES:
        raise InputError(f"--mode {mode} does not exist, modes: {', '.join(MODES)}")
    texts = list(PROBES)
    if probes is not None:
        if not probes.is_file():
            raise InputError(f"{probes} does not exist: give a text file, a probe a line")
        texts = [line for line in probes.read_text(encoding="utf-8").splitlines() if line.strip()]
    done = merge(model_path(model), adapter, target, mode, base=model_path(base) if base else None, probes=texts)
    print(
        f"{target}: {done.mode}, {done.bytes / 1e6:.1f} MB; the largest change of a logit on {done.probes} probes, "
        f"against base and adapter in fp32, is {done.change:.3g}"
    )
