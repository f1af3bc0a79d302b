"""One test for each defect of the review: fails without fixes.patch, passes with it."""

from __future__ import annotations

import json
import shutil
import struct
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import decoders, models

from riverrun.base.artifacts import digest_json
from riverrun.base.errors import ConfigError, InputError, IntegrityError, RiverrunError, UnsupportedError
from riverrun.base.protocols import Request
from riverrun.base.types import Message, SamplingParams
from riverrun.models.chat import ChatTemplate
from riverrun.models.config import ModelConfig
from riverrun.models.io.adapter import add_adapters, load_adapter, save_adapter
from riverrun.models.io.gguf import GGUFFile
from riverrun.models.load import load_checkpoint, load_model
from riverrun.models.tokenizer import StreamDecoder, Tokenizer
from riverrun.serve.llm import LLM
from riverrun.serve.pace import Pace
from riverrun.serve.sampler import choose
from riverrun.train import checkpoint
from riverrun.train.finetune import read_rows
from tests.models.tiny import config_json, hf_folder


@pytest.mark.parametrize("change", [{"hidden_size": 0}, {"num_attention_heads": 0}, {"vocab_size": -1}])
def test_impossible_configs(change: dict[str, Any]) -> None:
    raw = {k: v for k, v in (config_json("gqa") | change).items() if v is not None}
    with pytest.raises(ConfigError):
        ModelConfig.from_hf(raw)


@pytest.mark.parametrize("case", ["alignment", "overflow", "block", "nested"])
def test_gguf_headers_that_lie(case: str, tmp_path: Path) -> None:
    text = lambda s: struct.pack("<Q", len(s)) + s  # noqa: E731
    pair = {"alignment": struct.pack("<II", 4, 0), "nested": struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 3000}
    shape = {"overflow": (2**33, 2**31), "block": (33,)}.get(case, (32,))
    kind = 2 if case == "block" else 0
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, case in pair)
    head += text(b"general.alignment") + pair[case] if case in pair else b""
    head += text(b"x") + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, 0)
    (tmp_path / "m.gguf").write_bytes(head + bytes(64))
    with pytest.raises(IntegrityError):
        GGUFFile(tmp_path / "m.gguf")


def test_gguf_without_a_key(tmp_path: Path) -> None:
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 20) + b"general.architecture"
    (tmp_path / "m.gguf").write_bytes(head + struct.pack("<IQ", 8, 5) + b"llama" + bytes(64))
    with pytest.raises(IntegrityError):
        GGUFFile(tmp_path / "m.gguf").config()


def test_templates_see_bos_and_eos(tmp_path: Path) -> None:
    folder = shutil.copytree(hf_folder("mha"), tmp_path / "m")
    source = (
        "{{ bos_token }}{% if tools is not none %}TOOLS{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    (folder / "chat_template.jinja").write_text(source)
    shown = load_checkpoint(folder).template.render([Message.of("user", "Hi")], add_generation_prompt=False)
    assert shown == "<|im_start|>Hi"


def test_every_end_token_ends(tmp_path: Path) -> None:
    folder = shutil.copytree(hf_folder("mha"), tmp_path / "m")
    ask = Request((Message.of("user", "Which books?"),), params=SamplingParams(max_tokens=8))
    with LLM(folder, dtype="float32", slots=1) as model:
        third = model._sequence(ask)
        model._submit([third])
        assert third.done.wait(60)
    (folder / "config.json").write_text(json.dumps(config_json("mha") | {"eos_token_id": [2, third.output[3]]}))
    with LLM(folder, dtype="float32", slots=1) as model:
        (answer,) = model.generate([ask])
    assert (answer.finish_reason, answer.usage.completion_tokens) == ("stop", third.output.index(third.output[3]) + 1)


def test_no_message_is_no_crash() -> None:
    tokenizer = Tokenizer.from_file(hf_folder("mha") / "tokenizer.json")
    source = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert ChatTemplate(source).encode_with_labels(tokenizer, []) == ([], [])


def test_spaces_left_out_of_offsets_are_learned(tmp_path: Path) -> None:
    raw = json.loads((hf_folder("mha") / "tokenizer.json").read_text())
    raw["post_processor"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    tokenizer, template = Tokenizer.from_file(tmp_path / "tokenizer.json"), load_checkpoint(hf_folder("mha")).template
    talk = [Message.of("user", "x"), Message.of("assistant", "a\n\n  b")]
    ids, learned = template.encode_with_labels(tokenizer, talk)
    assert tokenizer.decode([i for i, flag in zip(ids, learned, strict=True) if flag]) == "a\n\n  b"


def test_byte_fallback_streams_whole_characters() -> None:
    words = ["<unk>", *(f"<0x{b:02X}>" for b in range(256))]
    made = tokenizers.Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [], byte_fallback=True))
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    stream, text = StreamDecoder(Tokenizer(made)), "你好书店价格"
    assert "".join([*(stream.push(1 + b) for b in text.encode()), stream.close()]) == text


@pytest.mark.parametrize("change", [{"alpha_pattern": {"q_proj": 64}}, {"modules_to_save": ["lm_head"]}])
def test_adapter_options_are_not_dropped(change: dict[str, Any], tmp_path: Path) -> None:
    opened = load_checkpoint(hf_folder("mha"))
    model = load_model(opened, torch.float32)
    add_adapters(model, 2, 4.0)
    save_adapter(model, tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UnsupportedError, match=next(iter(change))):
        load_adapter(load_model(opened, torch.float32), tmp_path)


def test_a_tiny_temperature_is_greedy() -> None:
    logits = np.array([1.0, 3.0, 2.0], dtype=np.float32)
    with np.errstate(over="ignore"):
        assert choose(logits, SamplingParams(temperature=1e-310), np.random.default_rng(0)) == 1


@pytest.fixture
def model() -> Any:
    with LLM(hf_folder("mha"), dtype="float32", slots=2) as opened:
        yield opened


def ask(text: str, tokens: int = 6) -> Request:
    return Request((Message.of("user", text),), params=SamplingParams(max_tokens=tokens))


def test_a_failing_step_loses_no_waiter_and_no_block(model: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(model.loop.engine, "forward", broken)
    sequences = [model._sequence(ask(str(n))) for n in range(5)]
    model.loop.submit(sequences)
    assert all(sequence.done.wait(20) for sequence in sequences), "a waiter was forgotten"
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no memory"):
            model.score("a long enough prefix here", ["x y"])
    monkeypatch.undo()
    assert model.generate([ask("again")])[0].usage.completion_tokens == 6
    model.loop.run(model.loop.scheduler.check_integrity)


def test_nothing_to_score_is_an_input_error(model: LLM) -> None:
    with pytest.raises(InputError, match="adds no token"):
        model.score("", [""])


def test_a_long_prompt_gives_way_to_running_answers(model: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    model.loop.pace = Pace(most=16, least=16)
    sizes: list[list[int]] = []
    forward, begun = model.loop.engine.forward, threading.Event()

    def watched(work: Any) -> Any:
        sizes.append([len(each.tokens) for each in work])
        begun.set()
        return forward(work)

    monkeypatch.setattr(model.loop.engine, "forward", watched)
    first, second = model._sequence(ask("x", 200)), model._sequence(ask("book " * 60, 2))
    model.loop.submit([first])
    assert begun.wait(20)
    model.loop.submit([second])
    assert first.done.wait(60)
    assert second.done.wait(60)
    beside = [size for size in sizes if max(size) > 1][len(first.prompt) // 16 + 1 :]
    assert len(beside) > 3
    assert all(size[0] == 1 and sum(size) <= 17 for size in beside), sizes[:30]


def test_a_stream_closed_before_it_is_read_is_aborted(model: LLM) -> None:
    stream = model.stream(ask("x", 400))
    stream.close()  # type: ignore[attr-defined]
    assert stream._sequence.aborted  # type: ignore[attr-defined]
    assert stream._sequence.done.wait(20)  # type: ignore[attr-defined]


def test_old_checkpoints_do_not_displace_those_of_a_new_run(tmp_path: Path) -> None:
    from riverrun.base.progress import Progress
    from riverrun.train.duration import Duration
    from riverrun.train.loop import LoopConfig, train
    from riverrun.train.objectives import Loss
    from riverrun.train.optim import Optimizer
    from riverrun.train.recipe import OptimizerConfig

    class Square:
        name = "square"

        def count(self, batch: object) -> int:
            return 1

        def __call__(self, batch: object) -> Loss:
            return Loss((weight**2).sum())

    weight = torch.nn.Parameter(torch.ones(2))
    settings = OptimizerConfig(learning_rate=0.1, schedule="constant", warmup=0.0)
    for step in (80, 100):
        optimizer = Optimizer({"w": weight}, settings)
        optimizer.step({"w": torch.ones(2)}, 0.1)
        checkpoint.Saver(tmp_path, background=False).save(step, {"w": weight}, optimizer, {"identity": {"run": "old"}})
    pack = type("P", (), {"label_tokens": 1, "computed_tokens": 1, "row_tokens": 1, "plain_text": False})()
    batches = type("B", (), {"batch": lambda self, step: [pack]})()
    config = LoopConfig(
        Duration(5, "steps"), settings, {"run": "new"}, save_every=Duration(2, "steps"), discard_other=True
    )
    train({"w": weight}, batches, Square(), lambda: None, config, work=tmp_path, progress=Progress("quiet"))
    saved = checkpoint.latest(tmp_path, identity={"run": "new"})
    assert saved is not None
    assert saved.step == 4


@pytest.mark.parametrize("damage", ["no tensors", "no key"])
def test_damaged_checkpoints_are_named(damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "step-000002"
    (folder / "trainer_state").mkdir(parents=True)
    state = {"identity": {"run": "a"}, "step": 2, "files": {"x": "0"}} if damage == "no tensors" else {"identity": {}}
    (folder / "trainer_state" / "state.json").write_text(json.dumps(state | {"digest": digest_json(state)}))
    with pytest.raises(IntegrityError, match="step-000002"):
        checkpoint.latest(tmp_path, identity={"run": "a"})


@pytest.mark.parametrize("line", [b'{"messages": [{"role": "robot"}]}', b'{"messages": "\xff"}'])
def test_bad_rows_name_file_and_line(line: bytes, tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_bytes(b"\n" + line + b"\n")
    with pytest.raises(RiverrunError, match=r"r\.jsonl, line 2"):
        list(read_rows(tmp_path / "r.jsonl"))
