"""How trained weights stand in a folder: an adapter in PEFT's layout, or a model that loads alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from riverrun.base.errors import IntegrityError
from riverrun.models.io.adapter import adapter_config, adapter_tensors, write_adapter
from riverrun.models.io.hf import Weights, load_tensors, write_weights
from riverrun.models.load import Checkpoint, save_companions
from riverrun.models.transformer import CausalLM

__all__ = ["AdapterFiles", "ModelFiles"]


class AdapterFiles:
    """adapter_config.json and adapter_model.safetensors."""

    def __init__(self, model: CausalLM, *, base: str = "") -> None:
        self.model, self.base = model, base
        self.names = frozenset(name for name, _ in model.named_parameters() if name.endswith(("lora_A", "lora_B")))

    def snapshot(self, *, copy: bool) -> Callable[[Path], None]:
        tensors = adapter_tensors(self.model)
        held = {name: tensor.clone() for name, tensor in tensors.items()} if copy else tensors
        config = adapter_config(self.model, base=self.base)
        return lambda folder: write_adapter(folder, config, held)

    def restore(self, folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        stored, own = load_tensors(path), adapter_tensors(self.model)
        for name in sorted({*stored, *own}):
            found, must = (list(each[name].shape) if name in each else "nothing" for each in (stored, own))
            if found != must:
                raise IntegrityError(f"{path}: tensor '{name}' is {found}, this training needs {must}")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(stored[name])


class ModelFiles:
    """config.json, safetensors, tokenizer and template: a model folder, each weight in the type it is trained in."""

    def __init__(self, model: CausalLM, opened: Checkpoint) -> None:
        self.model, self.opened = model, opened
        self.names = frozenset(name for name, _ in model.named_parameters())

    def snapshot(self, *, copy: bool) -> Callable[[Path], None]:
        views = self.model.views()
        tensors = {name: view.clone() for name, view in views.items()} if copy else views

        def write(folder: Path) -> None:
            write_weights(folder, self.model.config, tensors, None)
            save_companions(self.opened, folder)

        return write

    def restore(self, folder: Path) -> None:
        with torch.no_grad():
            self.model.load(Weights(folder, self.model.config).items(), str(folder))
