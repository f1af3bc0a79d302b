"""Checkpoints: whole or absent. `step-N/` is written beside as `step-N.incomplete`, synced, and renamed.

    step-N/                     the trained weights as others read them: an adapter in PEFT's layout, or a model folder
    step-N/trainer_state/       optimizer.safetensors, and state.json, written last: step, position in the data, losses,
                                identity of the training, sha256 of every file

The order of data and all that is drawn are functions of (seed, step), so a resumed training is equal to the bit to one
that was never stopped. What was damaged later is named, never used.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from riverrun.base.artifacts import digest_file, digest_json, write_json
from riverrun.base.errors import InputError, IntegrityError
from riverrun.models.io.hf import load_tensors, save_tensors
from riverrun.train.optim import Optimizer

__all__ = ["Saved", "Saver", "WeightFiles", "latest", "prune", "restore"]

STATE = Path("trainer_state") / "state.json"
TENSORS = Path("trainer_state") / "optimizer.safetensors"


class WeightFiles(Protocol):
    """How trained weights stand in a folder (`weights`)."""

    names: frozenset[str]
    """Parameters that are in these files; others go to the trainer's state."""

    def snapshot(self, *, copy: bool) -> Callable[[Path], None]:
        """What writes the weights of this moment; without `copy` they must not change before it is called."""
        ...

    def restore(self, folder: Path) -> None:
        """Put stored weights back; IntegrityError names what does not fit."""
        ...


@dataclass(frozen=True, slots=True)
class Saved:
    """A complete checkpoint and the JSON state that was stored with it."""

    folder: Path
    step: int
    state: dict[str, Any]


class Saver:
    """Writes checkpoints, in a thread of its own from a copy where `background`; one at a time. A context."""

    def __init__(self, root: Path, *, keep_last: int = 2, keep_every: int = 0, background: bool = True) -> None:
        self.root, self.keep_last, self.keep_every, self.background = root, keep_last, keep_every, background
        self._thread: threading.Thread | None = None
        self._failed: list[BaseException] = []

    def save(
        self,
        step: int,
        parameters: Mapping[str, Tensor],
        optimizer: Optimizer,
        state: Mapping[str, Any],
        files: WeightFiles | None = None,
    ) -> None:
        """Write checkpoint `step` (finished optimizer steps); waits for the one before."""
        self.wait()
        tensors = optimizer.tensors()
        known = files.names if files else frozenset()
        tensors |= {f"param/{name}": tensor.detach() for name, tensor in parameters.items() if name not in known}
        if self.background:
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        weights = files.snapshot(copy=self.background) if files else None
        record = json.loads(json.dumps({**state, "step": step, "updates": optimizer.updates}))
        work = _Work(self, step, weights, tensors, record)
        if self.background:
            self._thread = threading.Thread(target=self._guarded, args=(work,), name=f"checkpoint {step}")
            self._thread.start()
        else:
            work.write()

    def _guarded(self, work: _Work) -> None:
        try:
            work.write()
        except BaseException as error:
            self._failed.append(error)

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """A checkpoint that was begun is finished, whatever ended the run."""
        if kind is None:
            self.wait()
        elif self._thread is not None:
            self._thread.join()

    def wait(self) -> None:
        """Until the last checkpoint stands; raises what went wrong with it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failed:
            raise self._failed.pop()


@dataclass(slots=True)
class _Work:
    """One checkpoint to be written."""

    owner: Saver
    step: int
    weights: Callable[[Path], None] | None
    tensors: dict[str, Tensor]
    record: dict[str, Any]

    def write(self) -> None:
        root = self.owner.root
        final = root / f"step-{self.step:06d}"
        folder = final.with_name(f"{final.name}.incomplete")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if self.weights:
            self.weights(folder)
        save_tensors(folder / TENSORS, self.tensors)
        digests = {path.relative_to(folder).as_posix(): digest_file(path) for path in _files(folder)}
        record = self.record | {"files": digests}
        write_json(folder / STATE, record | {"digest": digest_json(record)})
        _sync(folder)
        _remove(final)
        os.replace(folder, final)
        _sync(root)
        prune(root, self.owner.keep_last, self.owner.keep_every)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def latest(root: Path, *, identity: Mapping[str, Any], discard_other: bool = False) -> Saved | None:
    """The newest complete checkpoint of the same training, or None.

    One of another training is an InputError that says what differs, unless `discard_other`: then it is passed over.
    """
    for folder in reversed(_complete(root)):
        marker = folder / STATE
        try:
            state = json.loads(marker.read_text(encoding="utf-8"))
            files, step, digest = dict(state["files"]), int(state["step"]), str(state.pop("digest"))
            theirs = dict(state["identity"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise IntegrityError(f"{marker} is damaged ({error!r}): delete {folder} and run again") from None
        if digest_json(state) != digest:
            raise IntegrityError(f"{marker} does not match its recorded digest: delete {folder} and run again")
        if difference := _difference(theirs, identity):
            if discard_other:
                continue
            raise InputError(
                f"{folder} is of another training ({difference}): give another folder for the output, or delete {root}"
            )
        for name, sha in files.items():
            if not (folder / name).is_file() or digest_file(folder / name) != sha:
                raise IntegrityError(
                    f"{folder / name} is missing or does not match its recorded sha256: delete {folder} and run again"
                )
        return Saved(folder, step, state)
    return None


def _difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """'key is A there and B here' of what differs, at most three; "" where nothing does."""
    mine = json.loads(json.dumps(dict(ours), default=str))
    wrong = [key for key in sorted({*theirs, *mine}) if theirs.get(key) != mine.get(key)]
    told = [f"{key} is {_short(theirs.get(key))} there and {_short(mine.get(key))} here" for key in wrong[:3]]
    return "; ".join(told) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text[:12] if re.fullmatch(r"[0-9a-f]{64}", text) else text


def _complete(root: Path) -> list[Path]:
    """Folders with a marker, by their step."""
    found = [path for path in root.glob("step-*") if re.fullmatch(r"step-\d+", path.name) and (path / STATE).is_file()]
    return sorted(found, key=_step)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def restore(
    saved: Saved, parameters: Mapping[str, Tensor], optimizer: Optimizer, files: WeightFiles | None = None
) -> None:
    """Put weights and the optimizer's tensors back; IntegrityError if they are those of another model."""
    path = saved.folder / TENSORS
    tensors = load_tensors(path)
    known = files.names if files else frozenset()
    own = {f"param/{name}": tensor for name, tensor in parameters.items() if name not in known}
    try:
        for name, parameter in own.items():
            if name not in tensors or tensors[name].shape != parameter.shape:
                found = list(tensors[name].shape) if name in tensors else "nothing"
                raise IntegrityError(f"{path}: tensor '{name}' is {found}, this training needs {list(parameter.shape)}")
        remembered = {name: tensor for name, tensor in tensors.items() if name not in own}
        optimizer.load(remembered, int(saved.state["updates"]), str(path))
        if files:
            files.restore(saved.folder)
    except IntegrityError as error:
        raise IntegrityError(f"{error}: delete {saved.folder} and run again") from None
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])


def prune(root: Path, keep_last: int, keep_every: int = 0) -> None:
    """Delete all but the newest `keep_last` complete checkpoints and those of each `keep_every`-th step, and every
    incomplete one."""
    complete = _complete(root)
    kept = set(complete[-keep_last:] if keep_last else [])
    kept |= {folder for folder in complete if keep_every and _step(folder) % keep_every == 0}
    for folder in root.glob("step-*"):
        if folder.is_dir() and folder not in kept:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Not complete from the first moment on: it loses its name before it loses a file."""
    if not folder.is_dir():
        return
    if not folder.name.endswith(".incomplete"):
        gone = folder.with_name(f"{folder.name}.gone.incomplete")
        shutil.rmtree(gone, ignore_errors=True)
        os.replace(folder, gone)
        folder = gone
    shutil.rmtree(folder)
