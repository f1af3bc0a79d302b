"""DSDL, OpenDataLab's Data Set Description Language: data sets as YAML, in and out.

    $dsdl-version: "0.5.0"
    meta: {name: ..., ...}
    defs:
      Animals: {$def: class_domain, classes: [cat, dog]}
      Sample: {$def: struct, $params: [cdom], $fields: {image: Image, label: "Label[dom=$cdom]"}, $optional: [label]}
    data:
      sample-type: Sample[cdom=Animals]
      samples: [{image: a.jpg, label: cat}, ...]

Definitions may stand below `defs` or beside it, and in files named by `$import` that lie in the description's folder;
samples may stand in a YAML or JSON file named by `sample-path`. Every sample is checked against its type.

Types: Bool Int Num Str Dict Text Date Time UniqueID InstanceID Image Video PointCloud LabelMap InstanceMap Coord
Coord3D Interval BBox RotatedBBox BBox3D Polygon Keypoint ImageShape Label[dom=D] List[etype=T] and structs. Refused by
name: global-info, imports that are not there, other types. Source: github.com/opendatalab/dsdl-sdk, fields and parser.
"""

from __future__ import annotations

import datetime
import json
import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from riverrun.base.artifacts import write_text
from riverrun.base.config import load_yaml
from riverrun.base.errors import InputError, UnsupportedError, nearest
from riverrun.hub.spec import is_safe_path

__all__ = ["ClassDomain", "Dsdl", "Struct", "dump_dsdl", "load_dsdl", "parse_dsdl"]

VERSION = "0.5.0"
_NAME = re.compile(r"[A-Za-z_]\w*")
_TYPE = re.compile(r"(?P<name>[A-Za-z_]\w*)(?:\[(?P<rest>.*)\])?", re.DOTALL)
_TEXTS = {"Str", "Text", "Image", "Video", "PointCloud", "LabelMap", "InstanceMap", "UniqueID", "InstanceID"}
_NUMBERS = {"Coord": 2, "Coord3D": 3, "Interval": 2, "BBox": 4, "RotatedBBox": 0, "BBox3D": 0, "ImageShape": 2}
_NESTED = {"Polygon", "Keypoint"}
_BASIC = {"Bool", "Int", "Num", "Dict", "Date", "Time", "Label", "List", *_TEXTS, *_NUMBERS, *_NESTED}


@dataclass(frozen=True)
class ClassDomain:
    """Names of classes; their numbers count from 1."""

    classes: tuple[str, ...]


@dataclass(frozen=True)
class Struct:
    """Field name -> type text, parameters (class domains that are named at use), fields that may be missing."""

    fields: Mapping[str, str]
    params: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dsdl:
    """A whole description."""

    meta: Mapping[str, Any]
    defs: Mapping[str, ClassDomain | Struct]
    sample_type: str
    samples: Sequence[Any]
    version: str = VERSION

    def __post_init__(self) -> None:
        _Check(self.defs).run(self.sample_type, self.samples)

    def classes(self, domain: str) -> tuple[str, ...]:
        """The names of a class domain."""
        found = self.defs.get(domain)
        if not isinstance(found, ClassDomain):
            known = [name for name, value in self.defs.items() if isinstance(value, ClassDomain)]
            raise InputError(f"no class domain is named '{domain}'.{nearest(domain, known)}")
        return found.classes


def load_dsdl(path: Path) -> Dsdl:
    """Read a description and the files of its own folder that it names. InputError names the place of what is wrong."""
    return parse_dsdl(load_yaml(path), origin=str(path), folder=path.parent)


def parse_dsdl(data: Mapping[str, Any], *, origin: str = "description", folder: Path | None = None) -> Dsdl:
    """A description from a mapping; `folder` is where imports and sample files are looked for."""
    if "$dsdl-version" not in data or not isinstance(data.get("data"), dict):
        raise InputError(f"{origin} is no DSDL data set: it needs the keys $dsdl-version and data")
    body = data["data"]
    for key in body:
        if key not in ("sample-type", "samples", "sample-path"):
            raise UnsupportedError(f"{origin}: data.{key} is not read here: leave it out")
    meta = data.get("meta") or {}
    if not isinstance(meta, dict):
        raise InputError(f"{origin}: meta must be a mapping, it is {type(meta).__name__}")
    definitions: dict[str, Any] = {}
    for name in _strings(data.get("$import"), f"{origin}: $import"):
        definitions |= _definitions(_imported(name, origin, folder), name)
    definitions |= _definitions(data, origin)
    sample_type = body.get("sample-type")
    if not isinstance(sample_type, str):
        raise InputError(f"{origin}: data.sample-type must name a type, it is {sample_type!r}")
    defs = {name: _definition(name, value, origin) for name, value in definitions.items()}
    samples = body["samples"] if "samples" in body else _sample_file(body.get("sample-path"), origin, folder)
    if not isinstance(samples, list):
        raise InputError(f"{origin}: data.samples must be a list, it is {type(samples).__name__}")
    return Dsdl(meta, defs, sample_type, samples, str(data["$dsdl-version"]))


def dump_dsdl(dataset: Dsdl, path: Path) -> None:
    """Write one file that `load_dsdl` reads back as it was."""
    defs: dict[str, Any] = {}
    for name, value in dataset.defs.items():
        if isinstance(value, ClassDomain):
            defs[name] = {"$def": "class_domain", "classes": list(value.classes)}
        else:
            struct: dict[str, Any] = {"$def": "struct"}
            if value.params:
                struct["$params"] = list(value.params)
            struct["$fields"] = dict(value.fields)
            if value.optional:
                struct["$optional"] = list(value.optional)
            defs[name] = struct
    body = {"sample-type": dataset.sample_type, "samples": list(dataset.samples)}
    data = {"$dsdl-version": dataset.version, "meta": dict(dataset.meta), "defs": defs, "data": body}
    try:
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    except yaml.YAMLError as error:
        raise UnsupportedError(f"{path}: a value of the data set cannot be written as YAML ({error})") from None
    write_text(path, text)


# reading ------------------------------------------------------------------------------------------------------------


def _strings(value: Any, where: str) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InputError(f"{where} must be a list of names, it is {value!r}")
    return list(value)


def _inside(name: str, origin: str, folder: Path | None, suffixes: Sequence[str]) -> Path:
    if not is_safe_path(name):
        raise InputError(f"{origin} names '{name}', which leads outside its folder")
    for suffix in suffixes:
        if folder is not None and (path := folder / f"{name}{suffix}").is_file():
            return path
    raise InputError(f"{origin} names '{name}', which is not beside it: put {name}{suffixes[0]} there")


def _imported(name: str, origin: str, folder: Path | None) -> dict[str, Any]:
    return load_yaml(_inside(name, origin, folder, (".yaml", ".yml", "")))


def _sample_file(name: Any, origin: str, folder: Path | None) -> Any:
    if not isinstance(name, str) or name == "$local":
        raise InputError(f"{origin}: data holds neither samples nor the sample-path of a file")
    path = _inside(name, origin, folder, ("",))
    if path.suffix == ".json":
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not JSON ({error})") from None
    else:
        data = load_yaml(path)
    return data.get("samples") if isinstance(data, dict) else data


def _definitions(data: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Mappings with `$def`, below `defs` or at the top."""
    below = data.get("defs") or {}
    if not isinstance(below, dict):
        raise InputError(f"{origin}: defs must be a mapping, it is {type(below).__name__}")
    at_top = {name: value for name, value in data.items() if isinstance(value, dict) and "$def" in value}
    return at_top | below


def _definition(name: Any, value: Any, origin: str) -> ClassDomain | Struct:
    where = f"{origin}: definition '{name}'"
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in _BASIC:
        raise InputError(f"{where} must have a name of letters and digits that is no basic type")
    kind = value.get("$def") if isinstance(value, dict) else None
    if kind == "class_domain":
        _only(value, ("$def", "classes"), where)
        classes = _strings(value.get("classes"), f"{where}: classes")
        if len(set(classes)) < len(classes) or not classes:
            raise InputError(f"{where}: classes must be different names, at least one")
        return ClassDomain(tuple(classes))
    if kind != "struct":
        raise UnsupportedError(f"{where} is of the kind {kind!r}: only struct and class_domain are read")
    _only(value, ("$def", "$params", "$fields", "$optional"), where)
    fields = value.get("$fields")
    if not isinstance(fields, dict) or not all(isinstance(k, str) and isinstance(v, str) for k, v in fields.items()):
        raise InputError(f"{where}: $fields must map names to types")
    optional = _strings(value.get("$optional"), f"{where}: $optional")
    if strange := set(optional) - set(fields):
        raise InputError(f"{where}: $optional names '{min(strange)}', which is no field")
    return Struct(dict(fields), tuple(_strings(value.get("$params"), f"{where}: $params")), tuple(optional))


def _only(value: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in value:
        if key not in known:
            raise UnsupportedError(f"{where}: key '{key}' is not read here: leave it out")


# checking -----------------------------------------------------------------------------------------------------------


def _split(text: str) -> list[str]:
    """Arguments between brackets, at commas outside inner brackets."""
    parts, depth, start = [], 0, 0
    for place, character in enumerate(text):
        depth += (character == "[") - (character == "]")
        if character == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    return [part.strip() for part in (*parts, text[start:]) if part.strip()]


class _Check:
    """Compares values with types; `where` grows like samples[3].objects[0].label."""

    def __init__(self, defs: Mapping[str, ClassDomain | Struct]) -> None:
        self.defs = defs

    def run(self, sample_type: str, samples: Sequence[Any]) -> None:
        for name, value in self.defs.items():
            if isinstance(value, Struct):
                for inner, text in value.fields.items():
                    self._parse(text, dict.fromkeys(value.params, ""), f"{name}.{inner}")
        self._parse(sample_type, {}, "sample-type")
        for place, sample in enumerate(samples):
            self.value(sample, sample_type, {}, f"samples[{place}]")

    def _parse(self, text: str, bound: Mapping[str, str], where: str) -> tuple[str, dict[str, str]]:
        """Type name and arguments, `$name` replaced by what it is bound to."""
        match = _TYPE.fullmatch(text.strip())
        if match is None:
            raise InputError(f"{where}: '{text}' is no type")
        name = match["name"]
        if name not in _BASIC and not isinstance(self.defs.get(name), Struct):
            known = [*_BASIC, *(n for n, value in self.defs.items() if isinstance(value, Struct))]
            raise UnsupportedError(f"{where}: type '{name}' is not known.{nearest(name, known)}")
        arguments: dict[str, str] = {}
        for part in _split(match["rest"] or ""):
            key, sign, value = part.partition("=")
            if not sign or "[" in key:
                key, value = ("etype", part) if name == "List" else ("dom", part)
            key, value = key.strip(), value.strip()
            for parameter, given in bound.items():
                value = re.sub(rf"\${re.escape(parameter)}\b", given or f"${parameter}", value)
            arguments[key] = value
        if name == "List" and "etype" not in arguments:
            raise InputError(f"{where}: '{text}' names no type of its elements: write List[etype=Str]")
        return name, arguments

    def value(self, value: Any, text: str, bound: Mapping[str, str], where: str) -> None:
        name, arguments = self._parse(text, bound, where)
        struct = self.defs.get(name)
        if isinstance(struct, Struct):
            self._struct(value, name, struct, arguments, where)
        elif name == "List":
            if not isinstance(value, list):
                raise self._wrong(value, "a list", where)
            for place, item in enumerate(value):
                self.value(item, arguments["etype"], {}, f"{where}[{place}]")
        elif name == "Label" and arguments.get("dom"):
            self._label(value, arguments["dom"], where)
        elif not _fits(value, name):
            raise self._wrong(value, name, where)

    def _struct(self, value: Any, name: str, struct: Struct, arguments: Mapping[str, str], where: str) -> None:
        if not isinstance(value, dict):
            raise self._wrong(value, name, where)
        for parameter in struct.params:
            if parameter not in arguments:
                raise InputError(f"{where}: {name} needs its parameter: write {name}[{parameter}=...]")
        for key in value:
            if key not in struct.fields:
                raise InputError(f"{where}: {name} has no field '{key}'.{nearest(str(key), struct.fields)}")
        for key, text in struct.fields.items():
            if key in value:
                self.value(value[key], text, arguments, f"{where}.{key}")
            elif key not in struct.optional:
                raise InputError(f"{where}: {name} needs the field '{key}'")

    def _label(self, value: Any, domain: str, where: str) -> None:
        found = self.defs.get(domain)
        if not isinstance(found, ClassDomain):
            raise InputError(f"{where}: '{domain}' is no class domain")
        number = isinstance(value, int) and not isinstance(value, bool)
        if value not in found.classes and not (number and 1 <= value <= len(found.classes)):
            raise InputError(f"{where}: {value!r} is no class of {domain}.{nearest(str(value), found.classes)}")

    def _wrong(self, value: Any, wanted: str, where: str) -> InputError:
        return InputError(f"{where} must be {wanted}, it is {reprlib.repr(value)} ({type(value).__name__})")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _fits(value: Any, name: str) -> bool:
    """Whether a value is of a basic type."""
    if name in _TEXTS:
        return isinstance(value, str) or (name in ("UniqueID", "InstanceID") and isinstance(value, int))
    if name in _NUMBERS:
        count = _NUMBERS[name]
        return isinstance(value, list) and all(map(_number, value)) and (not count or len(value) == count)
    if name in _NESTED:
        return isinstance(value, list) and all(isinstance(item, list) for item in value)
    if name == "Date":
        return isinstance(value, str | datetime.date)
    if name == "Time":
        return isinstance(value, str | int | datetime.datetime)
    if name == "Bool":
        return isinstance(value, bool) or (isinstance(value, int) and value in (0, 1))
    if name == "Int":
        return isinstance(value, int) and not isinstance(value, bool)
    if name == "Label":
        return isinstance(value, str | int) and not isinstance(value, bool)
    return isinstance(value, dict) if name == "Dict" else _number(value)
