"""YAML plus `a.b=c` overrides into a frozen pydantic model; an unknown key is an error that names the nearest ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from riverrun.base.errors import ConfigError, nearest
from riverrun.base.servers import hide_password

__all__ = ["Config", "apply_overrides", "build_config", "load_config", "load_yaml"]

C = TypeVar("C", bound="Config")


class Config(BaseModel):
    """Base of every spec: immutable, no unknown keys, defaults checked too."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; ConfigError names file and line."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist: give the path of a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as UTF-8 text: {error}") from None
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: not valid YAML ({getattr(error, 'problem', error)})") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a mapping of keys, it holds {type(data).__name__}")
    return data


def apply_overrides(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`a.b=c` sets data["a"]["b"] to the YAML value c; intermediate mappings are made as needed."""
    out: dict[str, Any] = _copy(data)
    for item in overrides:
        path, sign, raw = item.partition("=")
        if not sign or not path.strip():
            raise ConfigError(f"override '{hide_password(item)}' is not of the form key.sub=value")
        node = out
        *parents, leaf = path.strip().split(".")
        for key in parents:
            child = node.setdefault(key, {})
            if not isinstance(child, dict):
                raise ConfigError(f"override '{item}': '{key}' is a value ({child!r}), not a mapping")
            node = child
        try:
            node[leaf] = yaml.safe_load(raw)
        except yaml.YAMLError:
            raise ConfigError(hide_password(f"override '{item}': '{raw}' is not a YAML value")) from None
    return out


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value


def build_config(model: type[C], data: Mapping[str, Any], *, origin: str = "config") -> C:
    """Validate; every problem becomes one sentence with the place, the value and the nearest known keys."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(model, item, origin) for item in error.errors()[:5])) from None


def _explain(model: type[BaseModel], item: Any, origin: str) -> str:
    location = [part for part in item["loc"] if isinstance(part, str)]
    dotted = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{origin}: unknown key '{dotted}'.{nearest(location[-1], _fields(model, location[:-1]))}"
    if item["type"] == "missing":
        return f"{origin}: key '{dotted}' is required"
    if not dotted:  # about several keys together: the whole file would be the value
        return f"{origin}: {item['msg'].removeprefix('Value error, ')}"
    return hide_password(f"{origin}: '{dotted}' = {item.get('input')!r}: {item['msg']}")


def _fields(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    current: type[BaseModel] | None = model
    for key in path:
        field = current.model_fields.get(key) if current else None
        current = _model_of(field.annotation) if field else None
    return list(current.model_fields) if current else []


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in getattr(annotation, "__args__", ()):
        if found := _model_of(part):
            return found
    return None


def load_config(model: type[C], path: Path, overrides: Sequence[str] = ()) -> C:
    """Read a YAML file, apply overrides, validate."""
    return build_config(model, apply_overrides(load_yaml(path), overrides), origin=str(path))
