"""Checkpoints into other formats: the same bytes again, families, sizes of shards, memory, mapped weights, damage."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from riverrun.base.errors import InputError, IntegrityError, UnsupportedError
from riverrun.models.convert import convert_to_gguf, convert_to_groups, convert_to_hf, in_family
from riverrun.models.io.hf import Weights, write_weights
from riverrun.models.io.layouts import join_parts, split_parts
from riverrun.models.io.safetensors import Entry, SafetensorsFile, write_safetensors
from riverrun.models.load import load_checkpoint, load_config, load_model
from riverrun.models.transformer import CausalLM
from tests.models.families import make_folder
from tests.models.tiny import quick
from tests.tiny_model import tiny_config, tiny_weights, write_tiny, write_tokenizer

pytest.importorskip("transformers", reason="not run here: transformers")


def logits_of(model: CausalLM) -> torch.Tensor:
    ids = torch.randint(3, 320, (40,), generator=torch.Generator().manual_seed(2))
    attend = model.packed(0, [40])
    with torch.no_grad():
        return model.logits(model(ids, attend.positions, attend))


def opened(folder: Path, **how: Any) -> CausalLM:
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    if not (folder / "tokenizer.json").is_file():
        write_tokenizer(folder)
    return load_model(load_checkpoint(folder), torch.float32, **how)


@pytest.mark.parametrize("case", ["llama", "internlm2", "gemma3"])
def test_a_sharded_folder_comes_out_as_the_same_bytes(case: str, tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    make_folder(case, source, shard="5GB" if case == "internlm2" else "100KB")
    (source / "notes.md").write_text("kept")
    (source / "modeling_x.py").write_text("code is not copied")
    convert_to_hf(source, target)
    names = {path.name for path in source.iterdir()} - {"modeling_x.py"}
    assert {path.name for path in target.iterdir()} == names
    assert len(names) > 4 or case == "internlm2"
    for name in names:
        assert (target / name).read_bytes() == (source / name).read_bytes(), name


def test_shards_hold_what_they_may_and_transformers_reads_them(tmp_path: Path) -> None:
    import transformers

    make_folder("qwen2", tmp_path / "a")
    convert_to_hf(tmp_path / "a", tmp_path / "b", shard_bytes=60_000, dtype="bfloat16")
    files = sorted((tmp_path / "b").glob("*.safetensors"))
    assert len(files) > 3
    for path in files:
        entries = SafetensorsFile(path).entries.values()
        assert sum(e.nbytes for e in entries) <= 60_000 or len(entries) == 1
    ours = load_config(tmp_path / "b")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b", dtype=torch.bfloat16)
    weights = Weights(tmp_path / "b", ours)
    named = dict(theirs.named_parameters())
    assert set(weights) == set(named)
    assert all(torch.equal(tensor, named[name].data) for name, tensor in weights.items())


@pytest.mark.parametrize("case", ["internlm", "internlm2", "mistral-full"])
def test_another_family_computes_the_same(case: str, tmp_path: Path) -> None:
    reference = make_folder(case, tmp_path / "a")
    config = convert_to_hf(tmp_path / "a", tmp_path / "b", family="llama")
    assert config.model_type == "llama"
    ids = torch.randint(3, 320, (40,), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert float((logits_of(opened(tmp_path / "b")) - reference(ids[None]).logits[0]).abs().max()) <= 1e-4
    back = convert_to_hf(tmp_path / "b", tmp_path / "c", family=load_config(tmp_path / "a").model_type)
    if case == "internlm2":
        assert (tmp_path / "c" / "model.safetensors").read_bytes() == (
            tmp_path / "a" / "model.safetensors"
        ).read_bytes()
    assert back == load_config(tmp_path / "a")


@pytest.mark.parametrize("form", ["F16", "awq", "gptq", "gptq_v2", "group4"])
@pytest.mark.parametrize("case", ["internlm2", "qwen2"])
def test_every_format_is_read_back(case: str, form: str, tmp_path: Path) -> None:
    reference = make_folder(case, tmp_path / "a")
    whole = opened(tmp_path / "a")
    if form == "F16":
        convert_to_gguf(tmp_path / "a", tmp_path / "b.gguf", kind="F16")
        back = convert_to_hf(tmp_path / "b.gguf", tmp_path / "c")
        assert back.shapes() == whole.config.shapes()
        found, error = load_model(load_checkpoint(tmp_path / "b.gguf"), torch.float32), 0.05
        assert torch.equal(logits_of(found), logits_of(load_model(load_checkpoint(tmp_path / "c"), torch.float32)))
    else:
        convert_to_groups(tmp_path / "a", tmp_path / "b", form, group_size=16)
        found, error = load_model(load_checkpoint(tmp_path / "b"), torch.float32), 3.0
    assert float((logits_of(found) - logits_of(whole)).abs().max()) < error
    assert reference is not None


def test_what_another_family_cannot_say_is_named(tmp_path: Path) -> None:
    make_folder("qwen3", tmp_path)
    with pytest.raises(UnsupportedError, match="a qwen3 model with qk_norm = True cannot be written as llama"):
        in_family(load_config(tmp_path), "llama")
    with pytest.raises(UnsupportedError, match="'rwkv' is not supported, supported: llama"):
        in_family(load_config(tmp_path), "rwkv")
    with pytest.raises(InputError, match="is not empty: give a new folder"):
        convert_to_hf(tmp_path, tmp_path)
    with pytest.raises(InputError, match="dtype 'int3' is not written, written: float32"):
        convert_to_hf(tmp_path, tmp_path / "x", dtype="int3")


@quick(60)
@given(
    kv_heads=st.integers(1, 4),
    queries=st.integers(1, 4),
    half=st.integers(1, 4),
    width=st.integers(0, 5),
    seed=st.integers(),
)
def test_wqkv_is_put_together_as_it_was(kv_heads: int, queries: int, half: int, width: int, seed: int) -> None:
    dim = 2 * half
    config = tiny_config(num_attention_heads=kv_heads * queries, num_key_value_heads=kv_heads, head_dim=dim)
    shape = (kv_heads * (queries + 2) * dim, *([width] if width else []))
    stored = torch.randn(shape, generator=torch.Generator().manual_seed(seed % 2**31))
    q, k, v = split_parts(config, stored, ("q", "k", "v"))
    assert (len(q), len(k), len(v)) == (config.query_size, config.kv_size, config.kv_size)
    assert torch.equal(join_parts(config, [q, k, v]), stored)
    assert torch.equal(q[: queries * dim], stored[: queries * dim]), "the first key head's queries come first"


MEMORY = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {root!r})
import torch
from riverrun.models.convert import convert_to_hf
from riverrun.models.load import load_config, load_model
from riverrun.models.io.hf import Weights
from riverrun.models.transformer import CausalLM
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
source, target, what = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
config = load_config(source)
before = peak()
if what == "convert":
    convert_to_hf(source, target, shard_bytes=40_000_000)
else:
    model = CausalLM(config)
    with torch.no_grad():
        model.load(Weights(source, config).items(), "source")
print(peak() - before)
"""


@pytest.mark.parametrize("what", ["convert", "load"])
def test_no_more_is_in_memory_than_it_must(what: str, tmp_path: Path) -> None:
    """Converting holds two of the largest tensor, loading the weights and two of it."""
    config = tiny_config(vocab_size=16000, hidden_size=512, intermediate_size=1536, num_hidden_layers=16, head_dim=64)
    largest = 16000 * 512 * 4
    torch.manual_seed(0)
    weights = {name: torch.randn(shape) for name, shape in config.shapes().items()}
    write_weights(tmp_path / "a", config, weights, torch.float32)
    total = sum(tensor.nbytes for tensor in weights.values())
    assert total > 5 * largest
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", MEMORY.format(root=root), str(tmp_path / "a"), str(tmp_path / "b"), what]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    slack = 20_000_000  # what Python and torch bring at their first use
    assert int(done.stdout) <= (total if what == "load" else 0) + 2 * largest + slack


def test_mapped_weights_are_the_file(tmp_path: Path) -> None:
    for case in ("qwen2", "internlm2"):
        make_folder(case, tmp_path / case)
        plain, mapped = opened(tmp_path / case), opened(tmp_path / case, mapped=True)
        assert torch.allclose(logits_of(plain), logits_of(mapped), atol=1e-5)
        mapped.pack()
        assert torch.allclose(logits_of(plain), logits_of(mapped), atol=1e-5)
    big = tmp_path / "big"
    write_tiny(big)
    config = tiny_config(
        vocab_size=92544, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, tie_word_embeddings=False,
    )  # fmt: skip
    (big / "config.json").write_text(json.dumps(config.to_hf()))
    sparse(big / "model.safetensors", config.shapes())
    assert (big / "model.safetensors").stat().st_size > 15_000_000_000
    model = load_model(load_checkpoint(big), torch.bfloat16, mapped=True)
    assert model.config.num_parameters() == 7_737_708_544, "InternLM2-7B"


def sparse(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A bf16 file of zeros that takes no room on the disk."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(torch.tensor(shape).prod())
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with open(path, "wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        handle.truncate(8 + len(text) + at)


def test_adapters_fold_into_mapped_weights(tmp_path: Path) -> None:
    from riverrun.models.io.adapter import add_adapters, save_adapter

    write_tiny(tmp_path / "m")
    model = load_model(load_checkpoint(tmp_path / "m"), torch.float32)
    add_adapters(model, 4, 8.0, seed=1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    save_adapter(model, tmp_path / "a")
    both = load_checkpoint(tmp_path / "m", adapter=tmp_path / "a")
    assert torch.allclose(
        logits_of(load_model(both, torch.float32)), logits_of(load_model(both, torch.float32, mapped=True)), atol=1e-4
    )


def test_damage_is_named_before_anything_is_read(tmp_path: Path) -> None:
    make_folder("internlm2", tmp_path)
    config, file = load_config(tmp_path), tmp_path / "model.safetensors"
    whole = file.read_bytes()
    tensors = load_file(file)

    def trouble(**changes: Any) -> str:
        changed = {name: t for name, t in (tensors | changes).items() if t is not None}
        save_file(changed, file)
        with pytest.raises(IntegrityError) as error:
            Weights(tmp_path, config)
        return str(error.value)

    missing = trouble(**{"model.layers.1.attention.wqkv.weight": None})
    assert "1 tensors are missing, the first is 'model.layers.1.attention.wqkv.weight'" in missing
    wrong = trouble(**{"model.layers.1.attention.wo.weight": torch.ones(3, 4)})
    assert "'model.layers.1.attention.wo.weight' has shape [3, 4], the config needs [64, 64]" in wrong
    assert "'q.weight' has no place in a internlm2 model" in trouble(**{"q.weight": torch.ones(2)})
    for cut in (3, 40, len(whole) - 5):
        file.write_bytes(whole[:cut])
        with pytest.raises(IntegrityError, match="is not a whole safetensors file"):
            Weights(tmp_path, config)


@quick(40)
@given(
    tensors=st.dictionaries(
        st.text(max_size=12).filter(lambda name: name != "__metadata__"),
        st.tuples(
            st.sampled_from([torch.float32, torch.bfloat16, torch.int8]), st.lists(st.integers(0, 4), max_size=3)
        ),
        max_size=6,
    )
)
def test_safetensors_are_read_as_they_are_written(
    tensors: dict[str, tuple[torch.dtype, list[int]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Our reader on the reference's files, the reference on ours, and the same bytes for the same order."""
    path = tmp_path_factory.mktemp("s") / "a.safetensors"
    made = {name: torch.ones(shape, dtype=dtype) for name, (dtype, shape) in tensors.items()}
    save_file(made, path, metadata={"format": "pt"})
    file = SafetensorsFile(path)
    assert {name: list(entry.shape) for name, entry in file.entries.items()} == {
        n: list(t.shape) for n, t in made.items()
    }
    again = path.with_name("b.safetensors")
    write_safetensors(
        again,
        [Entry(e.name, e.dtype, e.shape) for e in file.entries.values()],
        (bytes(file.read(e)) for e in file.entries.values()),
        file.metadata,
    )
    assert again.read_bytes() == path.read_bytes()
    assert all(torch.equal(tensor, made[name]) for name, tensor in load_file(again).items())


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b'{"a": 3}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 9]}}',
        b'{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [9000000000000000000], "data_offsets": [0, 8]}}',
        b"\xff\xfe",
    ],
)
def test_headers_that_lie(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(IntegrityError, match="is not a whole safetensors file"):
        SafetensorsFile(path)
    path.write_bytes((2**63).to_bytes(8, "little"))
    with pytest.raises(IntegrityError, match="the header would have 9223372036854775808 bytes, the file has 8"):
        SafetensorsFile(path)
    assert tiny_weights


def test_every_tensor_keeps_its_own_type(tmp_path: Path) -> None:
    make_folder("llama", tmp_path / "a")
    file = tmp_path / "a" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].bfloat16()
    save_file(tensors, file, metadata={"format": "pt"})
    convert_to_hf(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b" / "model.safetensors").read_bytes() == file.read_bytes()
    convert_to_hf(tmp_path / "a", tmp_path / "c", dtype="float16")
    assert {t.dtype for t in load_file(tmp_path / "c" / "model.safetensors").values()} == {torch.float16}


def test_a_head_that_is_tied_and_stored_must_be_the_embedding(tmp_path: Path) -> None:
    make_folder("smollm2", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    head = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors | {"lm_head.weight": head}, file, metadata={"format": "pt"})
    assert "lm_head.weight" not in Weights(tmp_path, load_config(tmp_path))
    save_file(tensors | {"lm_head.weight": head + 1}, file, metadata={"format": "pt"})
    with pytest.raises(IntegrityError, match=r"'lm_head\.weight' is not the embedding: say tie_word_embeddings: false"):
        Weights(tmp_path, load_config(tmp_path))


def test_what_stands_in_a_folder_beside(tmp_path: Path) -> None:
    """One file goes before an index that an earlier model left; an index may name files of its folder alone."""
    make_folder("llama", tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    assert len(Weights(tmp_path, load_config(tmp_path)).files) == 1
    (tmp_path / "model.safetensors").rename(tmp_path / "x.safetensors")
    with pytest.raises(IntegrityError, match=r"names '\.\./x\.safetensors', which is not a file of its folder"):
        Weights(tmp_path, load_config(tmp_path))
    (tmp_path / "here").write_text("a file")
    with pytest.raises(InputError, match="is a file: give a new folder"):
        convert_to_hf(tmp_path, tmp_path / "here")
