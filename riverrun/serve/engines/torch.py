"""The torch engine: the reference of every other one. CPU here; one contiguous KV slot per sequence."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from riverrun.base.memory import free_memory
from riverrun.models.cache import SlotAttend, SlotCache
from riverrun.models.load import Checkpoint, load_model
from riverrun.models.transformer import CausalLM
from riverrun.serve.engine import Branch
from riverrun.serve.slots import shared_beginning

__all__ = ["TorchEngine", "default_dtype"]

# Log-probabilities are taken for so many rows at once: rows * vocabulary * 4 bytes.
_ROWS = 128


def default_dtype() -> torch.dtype:
    """bfloat16 where the processor multiplies it (AVX512-BF16, AMX), else float32."""
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def _stays_in_its_file(opened: Checkpoint, dtype: torch.dtype) -> bool:
    """Whether a copy of the weights would take more than half of the free memory: then they are mapped instead."""
    free = free_memory()
    return bool(free) and opened.config.num_parameters() * dtype.itemsize > free / 2


class TorchEngine:
    """Implements `serve.engine.Engine` on `models.transformer.CausalLM`."""

    def __init__(self, model: CausalLM, *, slots: int, context: int) -> None:
        """The model's weights are read as they are at each forward: it may go on learning between them."""
        self.model, self.dtype = model, model.dtype
        self.cache = SlotCache(model.config, slots, context, self.dtype)
        self.slots, self.context = slots, context
        self._tokens: list[list[int]] = [[] for _ in range(slots)]
        self._keys = [0] * slots

    @classmethod
    def open(cls, opened: Checkpoint, *, slots: int, context: int, threads: int, dtype: str) -> TorchEngine:
        """A checkpoint, laid out for inference alone; threads 0 keeps torch's choice."""
        if threads:
            torch.set_num_threads(threads)
        kinds = {"bfloat16": torch.bfloat16, "float32": torch.float32}
        chosen = default_dtype() if dtype == "auto" else kinds[dtype]
        model = load_model(opened, chosen, mapped=_stays_in_its_file(opened, chosen))
        model.pack()
        return cls(model, slots=slots, context=context)

    def held(self, slot: int) -> int:
        return self.cache.lengths[slot]

    def position_key(self, prompt_tokens: int) -> int:
        return self.model.config.rope_length(prompt_tokens)

    def copy_prefix(self, source: int, target: int, tokens: int, key: int = 0) -> None:
        assert not tokens or self._keys[source] == key, f"slot {source} has key {self._keys[source]}, not {key}"
        with torch.inference_mode():
            self.cache.copy_prefix(source, target, tokens)
        self._tokens[target], self._keys[target] = self._tokens[source][:tokens], key

    def _lengths(self, slots: Sequence[int], counts: Sequence[int]) -> torch.Tensor | None:
        """`lengths_T` of the model's forward; None while every sequence has the plain base."""
        keys = [self._keys[slot] for slot in slots]
        return torch.repeat_interleave(torch.tensor(keys), torch.tensor(counts)) if any(keys) else None

    @torch.inference_mode()
    def forward(self, slots: Sequence[int], new: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        alike = len({self._keys[slot] for slot in slots}) == 1
        common = shared_beginning([self._tokens[slot] for slot in slots]) if alike else 0
        counts = [len(ids) for ids in new]
        attend = SlotAttend(self.cache, slots, counts, common)
        flat = torch.tensor([i for ids in new for i in ids])
        hidden = self.model(flat, attend.positions, attend, self._lengths(slots, counts))
        attend.commit()
        for slot, ids in zip(slots, new, strict=True):
            self._tokens[slot] += ids
        logits: NDArray[np.float32] = self.model.logits(hidden[attend.last_rows()]).float().numpy()
        return logits

    @torch.inference_mode()
    def branch(self, slot: int, last: int, branches: Sequence[Sequence[int]]) -> list[Branch]:
        ids = [[last, *branch] for branch in branches]
        past = partial(self.cache.past, slot)
        attend = self.model.packed(self.held(slot), [len(row) for row in ids], past=past)
        lengths = self._lengths([slot], [len(attend.positions)])
        hidden = self.model(torch.tensor([i for row in ids for i in row]), attend.positions, attend, lengths)
        out, start = [], 0
        for branch, row in zip(branches, ids, strict=True):
            chosen, greedy = self._judge(hidden[start : start + len(branch)], torch.tensor(list(branch)))
            out.append(Branch(chosen.numpy(), greedy.numpy()))
            start += len(row)
        return out

    def _judge(self, hidden: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(log-probability, greedy) of `wanted` [n] after `hidden` [n, E]."""
        logprobs, greedy = [], []
        for start in range(0, len(wanted), _ROWS):
            logits, targets = self.model.logits(hidden[start : start + _ROWS]).float(), wanted[start : start + _ROWS]
            picked = logits.gather(1, targets[:, None]).squeeze(1)
            logprobs.append(picked - logits.logsumexp(dim=1))
            greedy.append(logits.argmax(dim=1) == targets)
        return torch.cat(logprobs), torch.cat(greedy)
