"""Log-probabilities of a pack's labels: of the model that learns, and of the model it started from (the reference).

N = label tokens of a pack, R = its rows. A LoRA's reference is the same model with its adapters left out: no second
copy. A full fine-tune's is computed before the first step, one number a row, and kept on disk (`StoredReference`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from riverrun.base.artifacts import atomic_file
from riverrun.base.errors import IntegrityError
from riverrun.base.optional import require
from riverrun.base.progress import Progress
from riverrun.data.packing import Pack
from riverrun.data.tokens import TokenRow
from riverrun.models.transformer import CausalLM
from riverrun.train.loss import token_logprobs
from riverrun.train.objectives.supervised import hidden_states, label_rows

__all__ = [
    "ModelReference",
    "Reference",
    "StoredReference",
    "base_weights",
    "label_logprobs",
    "row_of_label",
    "row_sums",
    "starts_at_base",
    "store_reference",
]

KEY_BYTES = 16


def label_logprobs(model: CausalLM, pack: Pack) -> Tensor:
    """[N] natural-log probabilities of the pack's labels, row after row; differentiable."""
    rows, targets = label_rows(hidden_states(model, pack), pack)
    return token_logprobs(rows, model.head, targets)


def row_of_label(pack: Pack) -> Tensor:
    """[N]: the row (its place in `pack.rows`) of each label."""
    counts = torch.tensor([row.label_tokens for row in pack.rows])
    return torch.repeat_interleave(torch.arange(len(counts)), counts)


def row_sums(values: Tensor, pack: Pack) -> Tensor:
    """[N] -> [R] sums over each row's labels, in float64: a sum of hundreds must keep the digits of a difference."""
    place = row_of_label(pack)
    return values.new_zeros(len(pack.rows), dtype=torch.float64).index_add(0, place, values.double())


@contextmanager
def base_weights(model: CausalLM) -> Iterator[None]:
    """Inside, the model is the base: its adapters are left out. For forwards without gradients."""
    matrices = [matrix for _, matrix in model.linears()]
    for matrix in matrices:
        matrix.bypassed = True
    try:
        with torch.no_grad():
            yield
    finally:
        for matrix in matrices:
            matrix.bypassed = False


def starts_at_base(model: CausalLM) -> bool:
    """Whether leaving the adapters out gives the model as it is now: it has adapters, and none changes anything yet."""
    adapters: list[Any] = [adapter for _, matrix in model.linears() for adapter in matrix.adapters.values()]
    return bool(adapters) and not any(bool(adapter.lora_B.detach().any()) for adapter in adapters)


class Reference(Protocol):
    """Log-probabilities of a pack's labels under the model that training started from."""

    def sums(self, pack: Pack) -> Tensor:
        """[R] of each row, float64, without gradients."""
        ...


class ModelReference:
    """A model that does not learn; of the one that learns, which has fresh adapters, its base without them."""

    def __init__(self, model: CausalLM) -> None:
        self.model = model

    def tokens(self, pack: Pack) -> Tensor:
        """[N], without gradients."""
        with base_weights(self.model):
            return label_logprobs(self.model, pack)

    def sums(self, pack: Pack) -> Tensor:
        return row_sums(self.tokens(pack), pack)


def row_key(row: TokenRow) -> bytes:
    """Equal rows have equal references, so a row's content is its key."""
    ids, learned = np.asarray(row.ids, dtype=np.int64), np.asarray(row.learned, dtype=np.bool_)
    return blake2b(ids.tobytes() + learned.tobytes(), digest_size=KEY_BYTES).digest()


class StoredReference:
    """Numbers computed by `store_reference`: one for each row."""

    def __init__(self, keys: NDArray[np.uint8], values: NDArray[np.float64]) -> None:
        self._values = dict(zip((key.tobytes() for key in keys), values.tolist(), strict=True))

    def sums(self, pack: Pack) -> Tensor:
        try:
            return torch.tensor([self._values[row_key(row)] for row in pack.rows], dtype=torch.float64)
        except KeyError:
            lost = next(row.id for row in pack.rows if row_key(row) not in self._values)
            raise IntegrityError(
                f"row '{lost}' has no stored reference log-probability: "
                "delete the work folder, the rows were changed since it was made"
            ) from None

    @classmethod
    def open(cls, path: Path, *, identity: str) -> StoredReference | None:
        """What is stored, or None if there is nothing or it is of another run."""
        if not path.is_file():
            return None
        safetensors = require("safetensors", extra="train")
        try:
            with safetensors.safe_open(str(path), framework="numpy") as file:
                if (file.metadata() or {}).get("identity") != identity:
                    return None
                return cls(file.get_tensor("keys"), file.get_tensor("logprobs"))
        except Exception as error:  # SafetensorError and OSError
            raise IntegrityError(f"{path} cannot be read ({error}): delete it and run again") from None


def store_reference(
    model: CausalLM, packs: Iterable[Pack], path: Path, *, identity: str, progress: Progress | None = None
) -> StoredReference:
    """Compute every row's reference by the model as it is now, before its first step, and keep it in `path`.

    The packs should be those that training sees first: in the same neighbourhood the numbers are equal to the bit, and
    the loss of the first step is exactly that of a margin of 0. A file of the same `identity` is taken as it is.
    """
    if stored := StoredReference.open(path, identity=identity):
        return stored
    keys: list[bytes] = []
    values: list[float] = []
    with (progress or Progress("quiet")).task("reference", total=None, unit="packs") as task:
        for pack in packs:
            keys += [row_key(row) for row in pack.rows]
            # with gradients on, although none is taken: the products are those of training, and so are their bits
            values += row_sums(label_logprobs(model, pack).detach(), pack).tolist()
            task.advance()
    table = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, KEY_BYTES)
    numbers = np.asarray(values, dtype=np.float64)
    serialize = require("safetensors.numpy", extra="train").save
    with atomic_file(path, "wb") as handle:
        handle.write(serialize({"keys": table, "logprobs": numbers}, metadata={"identity": identity}))
    return StoredReference(table, numbers)
