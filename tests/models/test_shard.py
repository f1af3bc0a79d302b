"""The split table: every projection has its cut, parts make the whole, sums of parts are products of the whole."""

from __future__ import annotations

import pytest
import torch

from riverrun.base.errors import InputError
from riverrun.models.attention import PackedCausal
from riverrun.models.shard import SPLITS, shard_config, shard_tensor
from riverrun.models.transformer import CausalLM
from tests.models.family_shapes import FAMILIES, config_of, weights_of


@pytest.mark.parametrize("family", FAMILIES)
def test_every_projection_is_cut_and_parts_make_the_whole(family: str) -> None:
    config = config_of(family)
    part = shard_config(config, 2)
    assert {name for _, matrix in CausalLM(config).linears() for name in matrix.parts} == set(SPLITS)
    for name, values in weights_of(config):
        whole = torch.from_numpy(values)
        parts = [shard_tensor(name, whole, rank, 2) for rank in range(2)]
        assert tuple(parts[0].shape) == part.shapes()[name], name
        cut = SPLITS.get(name.split(".")[-2])
        if cut == "columns" and name.endswith("bias"):
            assert torch.equal(parts[0] + parts[1], whole)
        elif cut:
            assert torch.equal(torch.cat(parts, dim=0 if cut == "rows" else 1), whole)
        else:
            assert all(torch.equal(each, whole) for each in parts)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_parts_in_one_process_give_the_hidden_states_of_the_whole(family: str) -> None:
    """Both run in step: the sum of a product waits for the other part's."""
    import threading

    config = config_of(family)
    weights = [(name, torch.from_numpy(values)) for name, values in weights_of(config)]
    ids = torch.arange(2, 30)

    def hidden(model: CausalLM) -> torch.Tensor:
        with torch.no_grad():
            attend = PackedCausal(0, [len(ids)], dtype=model.dtype, windows=config.windows)
            return model(ids, attend.positions, attend)

    def model_of(values: list[tuple[str, torch.Tensor]], size: int) -> CausalLM:
        model = CausalLM(shard_config(config, size))
        with torch.no_grad():
            model.load(values, "test")
        return model.eval()

    wanted = hidden(model_of(weights, 1))
    meeting, table, found = threading.Barrier(2, timeout=60), [torch.empty(0)] * 2, [torch.empty(0)] * 2

    def run(rank: int) -> None:
        def add_up(part: torch.Tensor) -> torch.Tensor:
            table[rank] = part
            meeting.wait()
            whole = table[0] + table[1]
            meeting.wait()
            return whole

        model = model_of([(name, shard_tensor(name, tensor, rank, 2)) for name, tensor in weights], 2)
        for _, matrix in model.linears():
            if all(SPLITS[part] == "columns" for part in matrix.parts):
                matrix.add_up = add_up
        found[rank] = hidden(model)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in found:
        assert torch.allclose(each, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def test_a_number_that_does_not_divide_is_named() -> None:
    with pytest.raises(InputError, match=r"3 processes do not divide num_attention_heads \(4\)"):
        shard_config(config_of("llama"), 3)
