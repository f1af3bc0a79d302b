"""The decoder against transformers, packs against documents alone, the cache against the whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from riverrun.base.errors import IntegrityError, UnsupportedError
from riverrun.models.attention import PackedCausal
from riverrun.models.config import ModelConfig
from riverrun.models.io.adapter import adapter_tensors, add_adapters, load_adapter, save_adapter
from riverrun.models.load import load_checkpoint, load_model
from riverrun.models.paged import NewTokens, PagedAttend, PagedCache
from riverrun.models.transformer import CausalLM
from tests.tiny_model import tiny_config, tiny_weights, write_tiny

SHAPES = [
    {},
    {"num_key_value_heads": 4},
    {"num_key_value_heads": 1, "tie_word_embeddings": False},
    {"head_dim": 32, "rope_theta": 500.0},
]


def make(dtype: torch.dtype = torch.float64, **changes: object) -> CausalLM:
    config = tiny_config(**changes)
    model = CausalLM(config, dtype)
    model.load(tiny_weights(config).items(), "tiny")
    return model.requires_grad_(False)


def ids_of(count: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 320, (count,), generator=torch.Generator().manual_seed(seed))


def hidden(model: CausalLM, ids: torch.Tensor) -> torch.Tensor:
    attend = PackedCausal(0, [len(ids)], dtype=model.dtype)
    return model(ids, attend.positions, attend)


@pytest.mark.parametrize("changes", SHAPES)
def test_logits_and_parameter_count_are_those_of_transformers(changes: dict[str, object], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="not run here: transformers")
    write_tiny(tmp_path, **changes)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    opened = load_checkpoint(tmp_path)
    model = load_model(opened, torch.float32)
    ids = ids_of(90)
    with torch.no_grad():
        ours, theirs = model.logits(hidden(model, ids)), reference(ids[None]).logits[0]
    assert float((ours - theirs).abs().max()) <= 1e-4
    assert opened.config.num_parameters() == sum(p.numel() for p in reference.parameters())


def test_a_folder_written_by_transformers_in_shards_loads(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="not run here: transformers")
    write_tiny(tmp_path / "a")
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype=torch.float32)
    write_tiny(tmp_path / "b", seed=9)
    (tmp_path / "b" / "model.safetensors").unlink()
    reference.save_pretrained(tmp_path / "b", max_shard_size="60kB")
    assert (tmp_path / "b" / "model.safetensors.index.json").is_file()
    ours = load_model(load_checkpoint(tmp_path / "b"), torch.float32).views()
    assert all(torch.equal(ours[name], tensor) for name, tensor in tiny_weights(tiny_config()).items())


@pytest.mark.parametrize("prefix", [0, 7])
@pytest.mark.parametrize("multiple", [1, 32])
def test_a_pack_equals_its_documents_alone(prefix: int, multiple: int) -> None:
    model = make()
    start, documents = ids_of(prefix, 2), [ids_of(n, n) for n in (5, 1, 9)]
    attend = PackedCausal(prefix, [len(d) for d in documents], dtype=model.dtype, multiple=multiple)
    ids = torch.cat([start, *documents, torch.zeros(attend.padding, dtype=torch.long)])
    packed = model(ids, attend.positions, attend)
    at = prefix
    for document in documents:
        alone = hidden(model, torch.cat([start, document]))[prefix:]
        assert float((packed[at : at + len(document)] - alone).abs().max()) <= 1e-10
        at += len(document)


def test_gradients_of_a_pack_are_the_sum_and_a_neighbour_changes_nothing() -> None:
    model = make()
    add_adapters(model, 4, 8.0)
    for _, matrix in model.linears():
        for adapter in matrix.adapters.values():
            adapter.double()
            torch.nn.init.normal_(adapter.lora_B, std=0.2, generator=torch.Generator().manual_seed(3))
    model.refresh()
    start, documents = ids_of(6, 2), [ids_of(n, n) for n in (5, 8)]

    def grads(packs: list[list[torch.Tensor]]) -> list[torch.Tensor]:
        model.zero_grad()
        for pack in packs:
            attend = PackedCausal(6, [len(d) for d in pack], dtype=model.dtype)
            out = model(torch.cat([start, *pack]), attend.positions, attend)
            out[6 : 6 + len(pack[0])].square().sum().backward() if len(pack) == 1 else out[6:].square().sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    together, apart = grads([documents]), grads([[documents[0]], [documents[1]]])
    assert len(together) == 2 * len(adapter_tensors(model)) // 2
    for one, other in zip(together, apart, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-9)


def test_lora_is_x_w_plus_s_x_a_b_forward_and_backward() -> None:
    model = make()
    matrix = next(m for name, m in model.linears() if name.endswith("self_attn"))
    for part in ("q_proj", "v_proj"):
        matrix.add_adapter(part, 4, 8.0, torch.Generator().manual_seed(1))
        matrix.adapters[part].double()
    x = torch.randn(11, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    matrix.refresh()
    assert torch.equal(matrix(x), x @ matrix.weight.T), "step 0 is the base"
    for part in ("q_proj", "v_proj"):
        torch.nn.init.normal_(matrix.adapters[part].lora_B, generator=torch.Generator().manual_seed(3))
    matrix.refresh()
    plain = x @ matrix.weight.T
    parts = dict(matrix.slices())
    extra = torch.zeros_like(plain)
    for part in ("q_proj", "v_proj"):
        adapter = matrix.adapters[part]
        extra = extra.index_add(
            1, torch.arange(parts[part].start, parts[part].stop), 2.0 * (x @ adapter.lora_A.T) @ adapter.lora_B.T
        )
    expected = plain + extra
    leaves = [x, *matrix.adapters.parameters()]
    weight = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    wanted = torch.autograd.grad((expected * weight).sum(), leaves)
    got = torch.autograd.grad((matrix(x) * weight).sum(), leaves)
    assert torch.allclose(matrix(x), expected)
    for one, other in zip(got, wanted, strict=True):
        assert torch.allclose(one, other)


def test_sequences_computed_in_pieces_equal_the_whole() -> None:
    model = make()
    first, second = ids_of(20, 4), ids_of(13, 5)
    cache = PagedCache(model.config, 12, 4, model.dtype)
    tokens, tables = {0: second, 2: first}, {0: [7, 1, 5, 3], 2: [2, 9, 4, 8, 6]}
    wanted = {2: hidden(model, first), 0: hidden(model, second)}
    done = {0: 0, 2: 0}
    for numbers, counts in [([2], [7]), ([2, 0], [1, 5]), ([0, 2], [8, 1]), ([2], [11])]:
        pairs = list(zip(numbers, counts, strict=True))
        attend = PagedAttend(cache, [NewTokens(done[n], count, tables[n]) for n, count in pairs])
        out = model(torch.cat([tokens[n][done[n] : done[n] + count] for n, count in pairs]), attend.positions, attend)
        at = 0
        for n, count in pairs:
            assert float((out[at : at + count] - wanted[n][done[n] : done[n] + count]).abs().max()) <= 1e-10
            done[n] += count
            at += count
    attend = PagedAttend(cache, [NewTokens(16, 4, [*tables[2][:4], 11])])  # the beginning is another one's
    out = model(first[16:], attend.positions, attend)
    assert float((out - wanted[2][16:]).abs().max()) <= 1e-10


def test_adapters_round_trip_in_the_layout_of_peft(tmp_path: Path) -> None:
    model = make(torch.float32)
    add_adapters(model, 4, 8.0, targets=("q_proj", "down_proj"), seed=3)
    names = set(adapter_tensors(model))
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in names
    assert len(names) == 2 * 2 * 2
    save_adapter(model, tmp_path)
    other = make(torch.float32)
    load_adapter(other, tmp_path)
    assert all(torch.equal(t, adapter_tensors(other)[n]) for n, t in adapter_tensors(model).items())


def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    model = CausalLM(tiny_config())
    weights = tiny_weights(tiny_config())
    short = {n: t for n, t in weights.items() if "layers.1.mlp.up_proj" not in n}
    with pytest.raises(IntegrityError, match=r"1 tensors are missing, the first is 'model\.layers\.1\.mlp\.up_proj"):
        model.load(short.items(), "file")
    wrong = weights | {"model.norm.weight": torch.zeros(3)}
    with pytest.raises(IntegrityError, match=r"'model\.norm\.weight' has shape \[3\], the config needs \[64\]"):
        model.load(wrong.items(), "file")
    for data, text in (
        ({"model_type": "mamba"}, "model_type 'mamba' is not supported, supported: llama"),
        ({"model_type": "qwen3_moe"}, r"'qwen3_moe' is not supported.* The closest is qwen3\."),
        ({"model_type": "llama", "rope_scaling": {"type": "longrope"}}, "rope_type 'longrope' is not supported"),
        ({"model_type": "llama", "partial_rotary_factor": 0.5}, r"partial_rotary_factor = 0\.5 is not supported"),
    ):
        with pytest.raises(UnsupportedError, match=text):
            ModelConfig.from_hf(tiny_config().model_dump() | data)
