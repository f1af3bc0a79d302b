"""DSDL in and out: the published form, round trips, and what is refused by name."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.base.errors import ConfigError, InputError, UnsupportedError
from riverrun.hub.dsdl import ClassDomain, Dsdl, Struct, dump_dsdl, load_dsdl, parse_dsdl

DETECTION = """
$dsdl-version: "0.5.0"
meta: {name: Demo, creator: 某人}
defs:
  Animals: {$def: class_domain, classes: [cat, dog]}
  Entry:
    $def: struct
    $params: [cdom]
    $fields: {bbox: BBox, label: "Label[dom=$cdom]"}
    $optional: [label]
  Sample:
    $def: struct
    $params: [cdom]
    $fields: {image: Image, objects: "List[etype=Entry[cdom=$cdom]]"}
data:
  sample-type: Sample[cdom=Animals]
  samples:
    - {image: a.jpg, objects: [{bbox: [1, 2, 3.5, 4], label: cat}, {bbox: [0, 0, 1, 1]}]}
    - {image: b.jpg, objects: [{bbox: [1, 2, 3, 4], label: 2}]}
    - {image: c.jpg, objects: []}
"""


def changed(path: str, value: Any) -> dict[str, Any]:
    data = yaml.safe_load(DETECTION)
    *parents, leaf = path.split("/")
    node = data
    for key in parents:
        node = node[int(key)] if isinstance(node, list) else node[key]
    if value is None:
        del node[leaf]
    else:
        node[int(leaf) if isinstance(node, list) else leaf] = value
    return data


def test_a_detection_set(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(DETECTION, encoding="utf-8")
    found = load_dsdl(tmp_path / "x.yaml")
    assert found.classes("Animals") == ("cat", "dog")
    assert [len(sample["objects"]) for sample in found.samples] == [2, 1, 0]
    assert found.defs["Entry"] == Struct({"bbox": "BBox", "label": "Label[dom=$cdom]"}, ("cdom",), ("label",))
    dump_dsdl(found, tmp_path / "y.yaml")
    assert load_dsdl(tmp_path / "y.yaml") == found
    with pytest.raises(InputError, match=r"no class domain is named 'Animal'\. Did you mean 'Animals'"):
        found.classes("Animal")


def test_the_library_form_with_imports_and_a_sample_file(tmp_path: Path) -> None:
    """Definitions at the top of imported files, as the published templates have them."""
    data = yaml.safe_load(DETECTION)
    (tmp_path / "task").mkdir()
    library = {"$dsdl-version": "0.5.0", "Entry": data["defs"]["Entry"], "Sample": data["defs"]["Sample"]}
    (tmp_path / "task" / "detection.yaml").write_text(yaml.safe_dump(library))
    (tmp_path / "samples.json").write_text(json.dumps({"samples": data["data"]["samples"]}))
    data["$import"] = ["task/detection"]
    data["defs"] = {"Animals": data["defs"]["Animals"]}
    data["data"] = {"sample-type": "Sample[cdom=Animals]", "sample-path": "samples.json"}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(data))
    assert load_dsdl(tmp_path / "x.yaml").samples == yaml.safe_load(DETECTION)["data"]["samples"]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("$dsdl-version", None, "needs the keys"),
        ("data/sample-type", None, "sample-type must name a type"),
        ("data/sample-type", "Sampel[cdom=Animals]", "type 'Sampel' is not known. Did you mean 'Sample'"),
        ("data/sample-type", "Sample", r"needs its parameter: write Sample\[cdom=...\]"),
        ("data/global-info", {}, "data.global-info is not read here"),
        ("data/samples", {}, "must be a list"),
        ("data/samples", None, "neither samples nor the sample-path"),
        ("$import", ["class/voc"], "names 'class/voc', which is not beside it"),
        ("$import", ["../../etc/passwd"], "leads outside its folder"),
        ("defs/Animals/$def", "enum", "is of the kind 'enum'"),
        ("defs/Animals/skeleton", [], "key 'skeleton' is not read here"),
        ("defs/Animals/classes", ["cat", "cat"], "must be different names"),
        ("defs/Entry/$optional", ["size"], "names 'size', which is no field"),
        ("defs/Entry/$fields/mask", "RLE", "Entry.mask: type 'RLE' is not known"),
        ("defs/Int", {"$def": "struct", "$fields": {}}, "no basic type"),
        ("data/samples/0/image", 3, r"samples\[0\].image must be Image, it is 3 \(int\)"),
        ("data/samples/0/objects/0/bbox", [1, 2], r"objects\[0\].bbox must be BBox"),
        ("data/samples/0/objects/0/bbox", [1, 2, 3, float("nan")], "must be BBox"),
        ("data/samples/0/objects/0/label", "cow", "'cow' is no class of Animals"),
        ("data/samples/1/objects/0/label", 3, "3 is no class of Animals"),
        ("data/samples/0/pixels", 3, "Sample has no field 'pixels'"),
        ("data/samples/0/image", None, "Sample needs the field 'image'"),
        ("meta", [], ""),
    ],
)
def test_what_is_refused_by_name(tmp_path: Path, path: str, value: Any, message: str) -> None:
    data = changed(path, value)
    if not message:
        assert parse_dsdl(data).meta == {}
        return
    with pytest.raises((InputError, UnsupportedError), match=message):
        parse_dsdl(data, folder=tmp_path)


def test_yaml_that_would_run_code_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("$dsdl-version: !!python/object/apply:os.system ['true']\ndata: {}\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_dsdl(tmp_path / "x.yaml")


NAME = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
SAFE = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12)
NUMBER = st.floats(-1e6, 1e6) | st.integers(-(10**9), 10**9)
VALUES: dict[str, Any] = {
    "Str": SAFE, "Image": SAFE, "Int": st.integers(), "Num": NUMBER, "Bool": st.booleans(),
    "BBox": st.lists(NUMBER, min_size=4, max_size=4), "Coord": st.lists(NUMBER, min_size=2, max_size=2),
    "Dict": st.dictionaries(NAME, SAFE | st.integers(), max_size=2),
    "Polygon": st.lists(st.lists(NUMBER, max_size=2), max_size=2),
    "Date": st.dates(), "Label[dom=Kinds]": st.sampled_from(["one", "二", 1, 2]),
    "List[etype=Str]": st.lists(SAFE, max_size=3), 
    "List[etype=List[etype=Int]]": st.lists(st.lists(st.integers(), max_size=2), max_size=2),
}  # fmt: skip


@st.composite
def datasets(draw: st.DrawFn) -> Dsdl:
    types = draw(st.dictionaries(NAME, st.sampled_from(sorted(VALUES)), min_size=1, max_size=5))
    optional = tuple(name for name in types if draw(st.booleans()))
    count = draw(st.integers(0, 4))
    samples = [
        {n: draw(VALUES[t]) for n, t in types.items() if n not in optional or draw(st.booleans())} for _ in range(count)
    ]
    defs = {"Kinds": ClassDomain(("one", "二")), "Sample": Struct(types, (), optional)}
    return Dsdl(draw(st.dictionaries(NAME, SAFE, max_size=2)), defs, "Sample", samples)


@settings(max_examples=60, deadline=None)
@given(datasets())
def test_round_trip(dataset: Dsdl) -> None:
    with tempfile.TemporaryDirectory() as folder:
        dump_dsdl(dataset, Path(folder) / "x.yaml")
        assert load_dsdl(Path(folder) / "x.yaml") == dataset
