"""Open a checkpoint, whatever its format: a GGUF file, a Hugging Face folder, or a bundle of a base and an adapter.

A bundle is a folder with `bundle.json` {"base": <file or folder inside>, "adapter": <folder inside>}: a quantised base
is kept as it is and the adapter is added when the weights are loaded. Opening reads headers only; torch is imported by
`load_model` alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riverrun.base.artifacts import digest_json, digest_tree
from riverrun.base.errors import InputError, IntegrityError
from riverrun.models.chat import ChatTemplate
from riverrun.models.config import ModelConfig
from riverrun.models.io.gguf import GGUFFile, is_gguf
from riverrun.models.templates import ADDITIONAL, choose, folder_templates, gguf_templates
from riverrun.models.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch
    from torch import Tensor

    from riverrun.models.transformer import CausalLM

__all__ = [
    "Checkpoint",
    "checkpoint_weights",
    "load_checkpoint",
    "load_config",
    "load_model",
    "quantization_of",
    "save_companions",
]

BUNDLE = "bundle.json"


@dataclass
class Checkpoint:
    """An opened model: shape, tokenizer, template; weights come with `load_model`."""

    path: Path
    config: ModelConfig
    tokenizer: Tokenizer
    template: ChatTemplate
    quantization: dict[str, Any] | None = None
    gguf: GGUFFile | None = None
    adapter: Path | None = None

    @property
    def weight_bytes(self) -> int:
        """Size of the weights on disk, adapter included."""
        files = [self.path] if self.path.is_file() else sorted(self.path.glob("*.safetensors"))
        if self.adapter:
            files += sorted(self.adapter.glob("*.safetensors"))
        return sum(file.stat().st_size for file in files)

    def digest(self) -> str:
        """sha256 identity over the base's and the adapter's files."""
        parts = [digest_tree(self.path)] + ([digest_tree(self.adapter)] if self.adapter else [])
        return parts[0] if len(parts) == 1 else digest_json(parts)


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: give a GGUF file or a model folder with {path.name}") from None
    except ValueError as error:
        raise IntegrityError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise IntegrityError(f"{path} must hold an object, it holds {type(data).__name__}")
    return data


def _resolve(path: Path) -> tuple[Path, Path | None]:
    """(base, adapter) of a path that may be a bundle."""
    if not path.exists():
        raise InputError(f"{path} does not exist: give a GGUF file, a model folder or a catalogue name")
    if not (path / BUNDLE).is_file():
        return path, None
    bundle = _json(path / BUNDLE)
    root = path.resolve()
    inside = [(root / str(bundle.get(key, ""))).resolve() for key in ("base", "adapter")]
    for part in inside:
        if root not in part.parents or not part.exists():
            raise IntegrityError(f"{path / BUNDLE} names {part.name}, which is not in the folder")
    return inside[0], inside[1]


def load_config(path: Path) -> ModelConfig:
    """The shape alone."""
    base, _ = _resolve(path)
    if base.is_file():
        return GGUFFile(base).config()
    return ModelConfig.from_hf(_json(base / "config.json"))


def quantization_of(folder: Path) -> dict[str, Any] | None:
    """The `quantization_config` of a model folder; None where its weights are plain."""
    found = _json(_resolve(folder)[0] / "config.json").get("quantization_config")
    return found if isinstance(found, dict) else None


def load_checkpoint(path: Path, *, adapter: Path | None = None, template: str = "") -> Checkpoint:
    """Open a model; errors name the file and what is wrong with it.

    `template` names a built-in chat template to take in place of the model's own (`templates.names()`).
    """
    base, bundled = _resolve(path)
    if bundled and adapter:
        raise InputError(f"{path} has its own adapter, {adapter} cannot be added to it: give the base model instead")
    adapter = adapter or bundled
    if base.is_file():
        if not is_gguf(base):
            raise IntegrityError(
                f"{base} is not a GGUF file (it does not start with 'GGUF'): give a GGUF file or a folder"
            )
        gguf = GGUFFile(base)
        source = choose(gguf_templates(gguf.metadata), template, gguf.metadata.get("general.architecture"), base)
        tokenizer = Tokenizer.from_gguf(gguf.metadata)
        config = _with_ends(gguf.config(), tokenizer)
        words = {"bos_token": tokenizer.token(tokenizer.bos_id), "eos_token": tokenizer.token(tokenizer.eos_id)}
        return Checkpoint(base, config, tokenizer, ChatTemplate(source, **words), gguf=gguf, adapter=adapter)
    return _open_folder(base, adapter, template)


def _open_folder(folder: Path, adapter: Path | None, template: str) -> Checkpoint:
    """A Hugging Face folder. What ends an answer stands in up to three of its files; all of them count."""
    raw = _json(folder / "config.json")
    config = ModelConfig.from_hf(raw)
    settings, generation = (
        _json(folder / name) if (folder / name).is_file() else {}
        for name in ("tokenizer_config.json", "generation_config.json")
    )
    words = {key: _token_text(settings.get(key)) for key in ("bos_token", "eos_token")}
    also = generation.get("eos_token_id")
    ends = [*config.end_ids, *(also if isinstance(also, list) else [also])]
    tokenizer = Tokenizer.from_folder(
        folder,
        bos_id=config.bos_token_id,
        end_ids=[end for end in ends if isinstance(end, int)],
        eos_token=words["eos_token"],
    )
    words["bos_token"] = words["bos_token"] or tokenizer.token(tokenizer.bos_id)
    words["eos_token"] = words["eos_token"] or tokenizer.token(tokenizer.eos_id)
    return Checkpoint(
        folder,
        _with_ends(config, tokenizer),
        tokenizer,
        ChatTemplate(choose(folder_templates(folder, settings), template, raw.get("model_type"), folder), **words),
        quantization=raw.get("quantization_config"),
        adapter=adapter,
    )


def _with_ends(config: ModelConfig, tokenizer: Tokenizer) -> ModelConfig:
    """The config with every end token that was found, so that a folder written from it keeps them."""
    ends = tokenizer.end_ids
    return config.model_copy(update={"eos_token_id": ends if len(ends) > 1 else tokenizer.eos_id})


def _token_text(value: Any) -> str:
    """A token of tokenizer_config.json: a text, or an object that holds it."""
    return str((value.get("content") if isinstance(value, dict) else value) or "")


def save_companions(checkpoint: Checkpoint, folder: Path) -> None:
    """Tokenizer and template beside written weights, so that the folder loads alone."""
    from riverrun.base.artifacts import write_json, write_text

    checkpoint.tokenizer.save(folder / "tokenizer.json")
    write_text(folder / "chat_template.jinja", checkpoint.template.source)
    for name, source in checkpoint.template.named.items():
        if source != checkpoint.template.source:
            write_text(folder / ADDITIONAL / f"{name}.jinja", source)
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    words = {"bos_token": checkpoint.template.bos_token, "eos_token": checkpoint.template.eos_token}
    settings |= {key: word for key, word in words.items() if word}
    write_json(folder / "tokenizer_config.json", settings)


def checkpoint_weights(
    checkpoint: Checkpoint, *, fold: bool = True, mapped: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) one at a time, an adapter folded in (added in float32); `mapped` as in `load_model`."""
    import torch

    from riverrun.models.transformer import CausalLM

    updates = {}
    if checkpoint.adapter and fold:
        from riverrun.models.io.adapter import load_adapter

        shape = CausalLM(checkpoint.config, torch.float32, empty=True)
        load_adapter(shape, checkpoint.adapter)
        updates = shape.take_adapters()
    weights: Iterable[tuple[str, Tensor]]
    if checkpoint.gguf:
        weights = ((name, torch.from_numpy(values)) for name, values in checkpoint.gguf.weights(checkpoint.config))
    else:
        from riverrun.models.io.hf import Weights, read_weights

        if mapped and not checkpoint.quantization:
            stored = Weights(checkpoint.path, checkpoint.config)
            weights = ((name, stored.mapped(name)) for name in stored)
        else:
            weights = read_weights(checkpoint.path, checkpoint.quantization, checkpoint.config)
    for name, tensor in weights:
        yield name, tensor.float() + updates[name].delta() if name in updates else tensor


def load_model(checkpoint: Checkpoint, dtype: torch.dtype, *, fold: bool = True, mapped: bool = False) -> CausalLM:
    """The weights in memory; an adapter is folded in (added in float32, rounded once) or kept beside (fold=False).

    `mapped` leaves matrices that stand in a folder in this very dtype where they are: the file is mapped, and pages are
    read when they are first used. Other weights are copied as always.
    """
    from riverrun.base.optional import require

    torch = require("torch", extra="serve")
    from riverrun.models.transformer import CausalLM

    assert fold or not mapped, "an adapter beside mapped weights is folded in"
    plain = not (checkpoint.gguf or checkpoint.quantization)
    model = CausalLM(checkpoint.config, dtype, empty=mapped and plain)
    if checkpoint.adapter and not fold:
        from riverrun.models.io.adapter import load_adapter

        load_adapter(model, checkpoint.adapter)
    weights = checkpoint_weights(checkpoint, fold=fold, mapped=mapped)
    with torch.no_grad():
        model.load(weights, str(checkpoint.path))
    model.refresh()
    return model.eval()
