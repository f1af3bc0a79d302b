"""One code for every device. Torch's meta device computes nothing, and refuses tensors of others as a GPU does."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from riverrun.base.errors import CapacityError, InputError, UnsupportedError
from riverrun.models.load import load_checkpoint, load_model
from riverrun.serve.engine import Work
from riverrun.serve.engines.torch import TorchEngine, device_of
from riverrun.serve.llm import LLM
from tests.tiny_model import write_adapter, write_tiny

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "a window": {"sliding_window": 20},
    "a base of its own for sliding layers": {
        "sliding_window": 20, "layer_types": ["sliding_attention", "full_attention"], "rope_local_theta": 1e4,
    },
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
}  # fmt: skip


@pytest.mark.parametrize("kv", ["model", "int8", "int4"])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_no_tensor_of_a_forward_stays_on_the_processor(
    tmp_path: Path, shape: str, kv: Literal["model", "int8", "int4"]
) -> None:
    folder = write_tiny(tmp_path / "model", **SHAPES[shape])
    model = load_model(load_checkpoint(folder), torch.float32).to("meta")
    engine = TorchEngine(model, tokens=256, kv=kv, device="meta")
    engine.load_adapter("other", write_adapter(tmp_path / "adapter", folder))
    prompt = Work([1, 2, 3], 0, [0], 2, 0, "")
    answers = [Work([5], 40, [1, 2, 4], 1, 0, name) for name in ("other", "")]
    hidden = engine.forward([prompt, *answers])
    assert (hidden.device.type, hidden.shape) == ("meta", (4, model.config.hidden_size))
    assert engine.model.logits(hidden).device.type == "meta"


def test_a_device_that_is_not_here_is_refused(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path)
    for name in ("gpu", "cuda:x", "mps", "cuda:01", "cuda:"):
        with pytest.raises(InputError, match=f"device '{name}' is not cpu, cuda or cuda:N"):
            device_of(name)
    for number in (torch.cuda.device_count(), 128, 255, 256):
        with pytest.raises(UnsupportedError, match=r"torch sees \d+ GPUs here .*: choose cpu"):
            LLM(folder, device=f"cuda:{number}")
    with pytest.raises(UnsupportedError, match="several processes work on the cpu"):
        LLM(folder, device="cuda", parallel=2)
    with pytest.raises(UnsupportedError, match="in full on device cuda: leave out stored"):
        LLM(folder, device="cuda", weights="stored")


def test_the_cache_takes_what_a_gpu_has_free(tmp_path: Path) -> None:
    with LLM(write_tiny(tmp_path), dtype="float32", slots=4, context=128) as model:
        assert model._cache_tokens(4, 0.0, 1000, 10**9) == 4 * 128, "no more than the slots can fill"
        assert model._cache_tokens(4, 0.0, 1000, 400_000) == 320
        assert model._cache_tokens(4, 0.0002, 1000, 400_000) == 200, "what was asked for comes first"
        with pytest.raises(CapacityError, match=r"the cache has 0\.00 GB"):
            model._cache_tokens(4, 0.0, 1000, 100_000)
