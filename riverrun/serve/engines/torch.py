"""The torch engine: the reference of every other one, on a CPU and on CUDA by the same code."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from riverrun.base.errors import InputError, UnsupportedError
from riverrun.base.memory import free_memory
from riverrun.models.io.adapter import load_adapter
from riverrun.models.load import Checkpoint, load_model
from riverrun.models.lora import Routes
from riverrun.models.paged import KVType, NewTokens, PagedAttend, PagedCache, bytes_per_token
from riverrun.models.transformer import CausalLM
from riverrun.serve.engine import Judged, Work

__all__ = ["BLOCK_SIZE", "TorchEngine", "default_dtype", "device_of"]

Weights = Literal["auto", "full", "stored"]
BLOCK_SIZE = 16
"""Tokens of a block: what is shared is shared to within so many."""
CPU = torch.device("cpu")
_ROWS = 128
"""Log-probabilities are taken for so many rows at once: rows * vocabulary * 4 bytes."""


def default_dtype(device: torch.device = CPU) -> torch.dtype:
    """bfloat16 where the processor multiplies it (AVX512-BF16, AMX), else float32; on a GPU bfloat16, else float16."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def device_of(name: str) -> torch.device:
    """cpu, cuda or cuda:N; one that is not here is refused."""
    found = re.fullmatch(r"cpu|cuda(?::(0|[1-9][0-9]*))?", name)
    if not found:
        raise InputError(f"device '{name}' is not cpu, cuda or cuda:N: choose one of them")
    if name != "cpu" and int(found[1] or 0) >= (count := torch.cuda.device_count()):
        built = "CUDA " + torch.version.cuda if torch.version.cuda else "no CUDA"
        raise UnsupportedError(f"device {name}: torch sees {count} GPUs here (built with {built}): choose cpu")
    return torch.device(name)


def _stays_in_its_file(opened: Checkpoint, dtype: torch.dtype) -> bool:
    """Whether a copy of the weights would take more than half of the free memory: then they are mapped instead."""
    free = free_memory()
    return bool(free) and opened.config.num_parameters() * dtype.itemsize > free / 2


class TorchEngine:
    """Implements `serve.engine.Engine` on `models.transformer.CausalLM`."""

    def __init__(
        self, model: CausalLM, *, tokens: int, kv: KVType = "model", device: str | torch.device = "cpu"
    ) -> None:
        """Room for `tokens` tokens. The model's weights are read as they are: it may learn between forwards."""
        self.model, self.dtype, self.device = model, model.dtype, torch.device(device)
        self.blocks, self.block_size = -(-tokens // BLOCK_SIZE), BLOCK_SIZE
        self.cache = PagedCache(model.config, self.blocks, BLOCK_SIZE, self.dtype, kind=kv, device=device)
        self._routes = Routes()
        for _, matrix in model.linears():
            matrix.routes = self._routes
        self.kind = kv if kv != "model" else str(self.dtype).removeprefix("torch.")

    @classmethod
    def open(
        cls,
        opened: Checkpoint,
        *,
        tokens: Callable[[int, int | None], int],
        threads: int = 0,
        dtype: str = "auto",
        kv: KVType = "model",
        weights: Weights = "auto",
        device: str = "cpu",
    ) -> TorchEngine:
        """A checkpoint, laid out for inference alone; threads 0 keeps torch's choice.

        `tokens` gives the room of the cache from the bytes of a token, and a GPU's free bytes (None: it lies in
        the system's memory). `weights`: those of few bits are laid out in `dtype` ("full") or kept as they are stored
        ("stored"), by what fits in the free memory ("auto"); a GPU has them laid out.
        """
        if device != "cpu" and weights == "stored":
            raise UnsupportedError(f"weights are laid out in full on device {device}: leave out stored, or choose cpu")
        place = device_of(device)
        if threads:
            torch.set_num_threads(threads)
        kinds = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}
        chosen = default_dtype(place) if dtype == "auto" else kinds[dtype]
        each = bytes_per_token(opened.config, kv, chosen.itemsize)
        if place.type != "cpu":
            model = load_model(opened, chosen).to(place)
            return cls(model, tokens=tokens(each, torch.cuda.mem_get_info(place)[0]), kv=kv, device=place)
        room = tokens(each, None)
        large = _stays_in_its_file(opened, chosen)
        few = opened.gguf is not None or opened.quantization is not None
        if weights == "stored" or (weights == "auto" and large and few):
            from riverrun.models.few_bits import load_few_bits

            model = load_few_bits(opened, chosen)
        else:
            model = load_model(opened, chosen, mapped=large)
        model.pack()
        return cls(model, tokens=room, kv=kv)

    def position_key(self, prompt_tokens: int) -> int:
        return self.model.config.rope_length(prompt_tokens)

    @torch.inference_mode()
    def forward(self, work: Sequence[Work]) -> Tensor:
        attend = PagedAttend(self.cache, [NewTokens(each.start, len(each.tokens), each.table) for each in work])
        ids = torch.tensor([i for each in work for i in each.tokens], device=self.device)
        keys = None
        if any(each.key for each in work):
            counts = torch.tensor([len(each.tokens) for each in work])
            keys = torch.repeat_interleave(torch.tensor([each.key for each in work]), counts).to(self.device)
        self._route(work)
        hidden = self.model(ids, attend.positions, attend, keys)
        ends = np.cumsum([len(each.tokens) for each in work])
        rows = np.concatenate([np.arange(end - each.wanted, end) for each, end in zip(work, ends, strict=True)])
        chosen: Tensor = hidden[torch.from_numpy(rows).to(self.device)]
        return chosen

    def _route(self, work: Sequence[Work]) -> None:
        """Send the tokens of each adapter's sequences through it."""
        rows: dict[str, list[int]] = {}
        at = 0
        for each in work:
            if each.adapter:
                rows.setdefault(each.adapter, []).extend(range(at, at + len(each.tokens)))
            at += len(each.tokens)
        self._routes.rows = {name: torch.tensor(places, device=self.device) for name, places in rows.items()}

    @torch.inference_mode()
    def logits(self, hidden: Tensor, rows: Sequence[int]) -> NDArray[np.float32]:
        chosen = hidden if len(rows) == len(hidden) else hidden[list(rows)]
        found: NDArray[np.float32] = self.model.logits(chosen).float().cpu().numpy()
        return found

    @torch.inference_mode()
    def judge(self, hidden: Tensor, rows: Sequence[int], targets: Sequence[int], top: int) -> list[Judged]:
        out = []
        for at in range(0, len(rows), _ROWS):
            logits = self.model.logits(hidden[list(rows[at : at + _ROWS])]).float()
            wanted = torch.tensor(list(targets[at : at + _ROWS]), device=logits.device)
            whole = logits.logsumexp(dim=1)
            picked = (logits.gather(1, wanted[:, None]).squeeze(1) - whole).tolist()
            greedy = (logits.argmax(dim=1) == wanted).tolist()
            best = logits.topk(top, dim=1) if top else None
            for n, (logprob, is_greedy) in enumerate(zip(picked, greedy, strict=True)):
                near: tuple[tuple[int, float], ...] = ()
                if best is not None:
                    near = tuple(zip(best.indices[n].tolist(), (best.values[n] - whole[n]).tolist(), strict=True))
                out.append(Judged(logprob, is_greedy, near))
        return out

    @torch.inference_mode()
    def total(self, hidden: Tensor, rows: Sequence[int]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = hidden[list(rows)].float().sum(dim=0).cpu().numpy()
        return found

    def read(self, blocks: Sequence[int]) -> dict[str, NDArray[Any]]:
        chosen = torch.tensor(list(blocks), device=self.device)
        return {name: _plain(x[chosen].cpu()) for name, x in self.cache.tensors()}

    def write(self, blocks: Sequence[int], stored: Mapping[str, NDArray[Any]]) -> None:
        chosen = torch.tensor(list(blocks), device=self.device)
        for name, x in self.cache.tensors():
            x[chosen] = torch.from_numpy(stored[name]).view(x.dtype).to(self.device)

    def load_adapter(self, name: str, path: Path) -> None:
        try:
            load_adapter(self.model, path)
        finally:  # of one that failed half-way nothing stays
            taken = self.model.take_adapters()
        for prefix, matrix in self.model.linears():
            own = {part: taken[key] for part in matrix.parts if (key := f"{prefix}.{part}.weight") in taken}
            matrix.serve(name, own)

    def unload_adapter(self, name: str) -> None:
        for _, matrix in self.model.linears():
            matrix.serve(name, {})

    def close(self) -> None:
        """Nothing of it outlives this object."""


def _plain(x: Tensor) -> NDArray[Any]:
    """As numbers that numpy and safetensors know: bfloat16 as its bits."""
    out: NDArray[Any] = (x.view(torch.int16) if x.dtype == torch.bfloat16 else x).numpy()
    return out
