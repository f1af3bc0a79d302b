"""The house rules that a program can check: arrows, budgets, public names, forbidden constructs, light start-up.

The arrows are those of docs/house.md. An import counts wherever it stands: at the top, in a function, under
TYPE_CHECKING, or as the text given to `require`.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "riverrun"

GROUND = {"base", "wire", "web", "hub"}
EVERY = GROUND | {"models", "data", "train", "serve", "evaluate", "agent", "plan"}
ARROWS: dict[str, set[str]] = {
    "base": set(),
    "wire": {"base"},
    "web": {"base"},
    "hub": {"base", "wire", "web"},
    "models": GROUND,
    "data": GROUND | {"models"},
    "train": GROUND | {"models", "data"},
    "serve": GROUND | {"models"},
    "evaluate": GROUND,
    "agent": GROUND,
    "plan": {"base", "models.config"},
    "chain": EVERY,
    "cli": EVERY | {"chain"},
}
TORCH = [
    *("models/attention.py", "models/paged.py", "models/transformer.py", "models/vision.py", "models/lora.py"),
    *("models/rope.py", "models/merge.py", "models/convert.py", "models/io/layouts.py"),
    *("models/native.py", "models/kernels.py", "models/products.py", "models/stored.py", "models/qlora.py"),
    *("models/few_bits.py", "models/shard.py"),
    *("models/io/hf.py", "models/io/adapter.py", "train/"),
    *("serve/engines/torch.py", "serve/engines/parallel.py", "serve/calibrate/"),
]
"""Files that may import torch at their top; a folder stands for all of its files."""
TORCH_LATE = ["models/load.py", "serve/llm.py", "chain/quantizing.py"]
"""Files that may ask for torch when something is constructed, and for its types."""
TORCH_FREE = [
    *(
        "train/__init__.py",
        "train/config.py",
        "train/recipe.py",
        "train/duration.py",
        "train/schedule.py",
        "train/log.py",
        "train/history.py",
        "train/page.py",
        "train/compare.py",
    ),
    "train/objectives/config.py",
]
"""Files of the folders above that stay without."""
EXTRAS_AT_TOP = [
    f"serve/http/{name}.py"
    for name in ("desk", "heads", "messages", "more", "openai", "responses", "status", "streaming")
]
"""Files beside those of TORCH that need an extra to be imported at all; others ask for it at construction."""

FILE_LINES, FUNCTION_LINES = 600, 100
IMPORT_NAMES = {
    "pyyaml": "yaml",
    "json-repair": "json_repair",
    "types-pyyaml": "yaml",
    "prometheus-client": "prometheus_client",
    "grpcio": "grpc",
    "grpcio-health-checking": "grpc_health",
    "grpcio-reflection": "grpc_reflection",
    "protobuf": "google",
}


@dataclass(frozen=True)
class Import:
    """One imported module. `late` is an import that does not run when the file is imported."""

    module: str
    line: int
    late: bool


@dataclass(frozen=True, eq=False)
class Module:
    """One file of the package."""

    path: Path
    tree: ast.Module
    text: str

    @property
    def place(self) -> str:
        return self.path.relative_to(PACKAGE).as_posix()

    @property
    def name(self) -> str:
        parts = self.path.relative_to(ROOT).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def room(self) -> str:
        parts = self.name.split(".")
        return parts[1] if len(parts) > 1 else ""

    def within(self, places: list[str]) -> bool:
        return any(self.place == place or (place.endswith("/") and self.place.startswith(place)) for place in places)


@cache
def modules() -> dict[str, Module]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        module = Module(path, ast.parse(text), text)
        found[module.name] = module
    return found


def _last_name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


@cache
def imports(module: Module) -> list[Import]:
    """Everything a file imports; `from riverrun.a import b` gives riverrun.a.b where that is a module."""

    def visit(node: ast.AST, late: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, child.lineno, late) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{module.place}:{child.lineno}: imports are absolute here"
                for alias in child.names:
                    full = f"{child.module}.{alias.name}"
                    yield Import(full if full in modules() else str(child.module), child.lineno, late)
            elif isinstance(child, ast.Call) and _last_name(child.func) in ("require", "import_module"):
                names = [node.value for node in child.args[:1] if isinstance(node, ast.Constant)]
                yield from (Import(str(name), child.lineno, True) for name in names)
            yield from visit(child, late or function or typing_only)

    return list(visit(module.tree, False))


def ours(module: Module) -> Iterator[Import]:
    return (item for item in imports(module) if item.module.split(".")[0] == "riverrun")


@cache
def declared() -> dict[str, set[str]]:
    """Importable names by extra ("" for the base install)."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = {"": project["dependencies"], **project["optional-dependencies"]}
    return {
        extra: {IMPORT_NAMES.get(name := re.split(r"[\[<>=~! ]", item)[0].lower(), name) for item in items}
        for extra, items in lists.items()
    }


def test_the_document_draws_the_rooms_and_arrows_held_here() -> None:
    """The table in docs/house.md: each room, and in the second column what it may import."""
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert rooms == set(ARROWS)
    text = (ROOT / "docs" / "house.md").read_text(encoding="utf-8")
    section = text.partition("## Rooms and arrows")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", section, re.MULTILINE))
    assert {room: set(re.findall(r"[a-z.]+", cell)) - {"nothing"} for room, cell in rows.items()} == ARROWS


def test_imports_follow_the_arrows() -> None:
    wrong = []
    for module in modules().values():
        for item in ours(module):
            target = item.module.removeprefix("riverrun").removeprefix(".")
            room = target.split(".")[0]
            if not module.room or room in ("", module.room):
                if room and not module.room:
                    wrong.append(f"{module.place}:{item.line}: the package's own __init__ imports nothing")
                continue
            allowed = ARROWS[module.room]
            if room not in allowed and target not in allowed:
                wrong.append(f"{module.place}:{item.line}: {module.room} may not import riverrun.{target}")
    assert not wrong, "\n".join(wrong)


def test_arrows_go_one_way() -> None:
    """The table itself has no circle."""
    done: set[str] = set()
    while ready := {
        room for room, allowed in ARROWS.items() if room not in done and {a.split(".")[0] for a in allowed} <= done
    }:
        done |= ready
    assert done == set(ARROWS)


def test_files_import_each_other_in_no_circle() -> None:
    graph = {
        name: {item.module for item in ours(module)} & set(modules()) - {name} for name, module in modules().items()
    }
    while leaves := {name for name, targets in graph.items() if not targets}:
        graph = {name: targets - leaves for name, targets in graph.items() if name not in leaves}
    while roots := set(graph) - {target for targets in graph.values() for target in targets}:
        graph = {name: targets for name, targets in graph.items() if name not in roots}
    assert not graph, f"files that import each other in a circle: {sorted(graph)}"


def test_torch_stays_where_it_may_be() -> None:
    wrong = []
    for module in modules().values():
        for item in imports(module):
            if item.module.split(".")[0] != "torch" and item.module != "safetensors.torch":
                continue
            top = module.within(TORCH) and not module.within(TORCH_FREE)
            if not top and not (item.late and module.within(TORCH_LATE)):
                wrong.append(f"{module.place}:{item.line} imports {item.module}")
    assert not wrong, "\n".join(wrong)


def test_every_package_that_is_imported_is_declared() -> None:
    """The base install needs none of the extras; what the code imports stands in pyproject.toml."""
    known = declared()
    usable = set().union(*(names for extra, names in known.items() if extra != "dev"))
    wrong = []
    for module in modules().values():
        for item in imports(module):
            top = item.module.split(".")[0]
            if top in sys.stdlib_module_names or top == "riverrun":
                continue
            if top not in usable:
                wrong.append(f"{module.place}:{item.line}: '{top}' is in no extra of pyproject.toml")
            elif top not in known[""] and not item.late and not module.within([*TORCH, *EXTRAS_AT_TOP]):
                wrong.append(f"{module.place}:{item.line}: '{top}' is of an extra and is imported at the top")
    assert not wrong, "\n".join(wrong)


def test_every_declared_package_is_used() -> None:
    used = {item.module.split(".")[0] for module in modules().values() for item in imports(module)}
    idle = {extra: names - used - {"riverrun"} for extra, names in declared().items() if extra not in ("dev", "all")}
    assert not any(idle.values()), f"declared in pyproject.toml and imported nowhere: {idle}"


def test_the_base_install_is_small() -> None:
    assert len(declared()[""]) <= 10


def test_constraints_pin_what_pyproject_names() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", pin) for pin in pins), "name==version, nothing else"
    assert pins == sorted(pins)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [*project["dependencies"], *(item for extra in project["optional-dependencies"].values() for item in extra)]
    wanted = {re.split(r"[\[<>=~! ]", item)[0].lower().replace("_", "-") for item in named} - {"riverrun"}
    assert wanted <= {pin.split("==")[0] for pin in pins}


BLOCKED = """
import importlib, importlib.abc, sys
blocked, names = sys.argv[1].split(","), sys.argv[2:]
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"{name} is kept away by this test", name=name)
sys.meta_path.insert(0, Finder())
failed = []
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        failed.append(f"{name}: {error}")
print("\\n".join(failed))
"""


def test_a_base_install_imports_everything_that_needs_no_extra() -> None:
    """In a process where the packages of the extras cannot be found; also what files import through others."""
    known = declared()
    extras = set().union(*(names for extra, names in known.items() if extra)) - known[""] - {"riverrun", "yaml"}
    at_top = [*TORCH, *EXTRAS_AT_TOP]
    names = [m.name for m in modules().values() if not m.within(at_top) or m.within(TORCH_FREE)]
    command = [sys.executable, "-c", BLOCKED, ",".join(sorted(extras)), *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.strip(), done.stdout


def source_files() -> list[Path]:
    """Python that is held to the budgets: the package, the benches, the recipes."""
    return [path for top in ("riverrun", "bench", "recipes") for path in sorted((ROOT / top).rglob("*.py"))]


def test_files_and_functions_keep_their_budgets() -> None:
    long = []
    for path in [*source_files(), *sorted((ROOT / "tests").rglob("*.py"))]:
        text = path.read_text(encoding="utf-8")
        place = path.relative_to(ROOT).as_posix()
        if (lines := text.count("\n")) > FILE_LINES:
            long.append(f"{place}: {lines} lines, the cap is {FILE_LINES}")
        if place.startswith("tests/"):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES:
                    long.append(f"{place}:{node.lineno} {node.name}: {lines} lines, the cap is {FUNCTION_LINES}")
    assert not long, "\n".join(long)


def _bound(tree: ast.Module) -> set[str]:
    """Names a module binds at its top, also in top-level if, try and with blocks."""
    names: set[str] = set()
    todo: list[ast.AST] = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        todo.extend(ast.iter_child_nodes(node))
    return names


def test_every_module_says_what_it_is_and_what_is_public() -> None:
    wrong = []
    for module in modules().values():
        if not ast.get_docstring(module.tree):
            wrong.append(f"{module.place}: no docstring")
        if module.path.name == "__init__.py" and len(module.tree.body) == 1:
            continue  # a room's sign, with nothing to export
        if module.name == "riverrun":
            continue
        lists = [
            ast.literal_eval(node.value)
            for node in module.tree.body
            if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets)
        ]
        if len(lists) != 1:
            wrong.append(f"{module.place}: __all__ is set {len(lists)} times")
        elif missing := set(lists[0]) - _bound(module.tree):
            wrong.append(f"{module.place}: __all__ names what is not there: {sorted(missing)}")
    assert not wrong, "\n".join(wrong)


NEVER_IMPORTED = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
NEVER_CALLED = {
    "eval", "exec", "torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen",
    "tempfile.mktemp",
}  # fmt: skip
NEVER_PASSED = {"shell", "trust_remote_code", "allow_pickle"}


def forbidden(text: str) -> Iterator[tuple[int, str]]:
    """Lines of Python source with a construct that runs what a file or a stranger says."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [str(node.module)]
            yield from ((node.lineno, name) for name in names if name.split(".")[0] in NEVER_IMPORTED)
        elif isinstance(node, ast.Call):
            if (called := ast.unparse(node.func)) in NEVER_CALLED:
                yield node.lineno, called
            for keyword in node.keywords:
                on = not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
                if keyword.arg in NEVER_PASSED and on:
                    yield node.lineno, f"{keyword.arg}="


@pytest.mark.parametrize(
    "text",
    ["import pickle", "from marshal import loads", "eval('1')", "torch.load(path)", "run(line, shell=True)",
     "yaml.load(text)", "load(name, trust_remote_code=flag)"],
)  # fmt: skip
def test_forbidden_constructs_are_seen(text: str) -> None:
    assert list(forbidden(text))


def test_nothing_runs_what_a_file_says() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for path in source_files()
        for line, what in forbidden(path.read_text(encoding="utf-8"))
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_is_left_for_later() -> None:
    """No stub, no marker of unfinished work, no test that is expected to fail."""
    words = re.compile(r"\b(TO" r"DO|FIX" r"ME|X" r"XX)\b|NotImplemented" r"Error|mark\.x" r"fail|pytest\.x" r"fail")
    wrong = []
    for path in [*source_files(), *sorted((ROOT / "tests").rglob("*.py"))]:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if words.search(line):
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not wrong, "\n".join(wrong)


def tracked() -> list[Path]:
    """Files of the repository as git knows them, or every file below the root where there is no git."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0 and done.stdout:
        return [path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file()]
    tops = ("riverrun", "tests", "bench", "recipes", "docs")
    return [path for top in tops for path in sorted((ROOT / top).rglob("*")) if path.suffix in {".py", ".md", ".yaml"}]


ELSEWHERE = re.compile(
    r"(?<![\w.])/(work|root|tmp/w|opt/wheels|opt/pypi)\b"  # paths of one machine
    r"|(?<![\w./-])/home/\w+/"
    r"|py" r"pi\.org|pythonhosted\." r"org|registry\.np" r"mjs|download\.py" r"torch\.org|deb\.deb" r"ian\.org"
    r"|Co-Authored" r"-By|generated (with|by) (an )?(AI|LLM)|\b(Cl" r"aude|Chat" r"GPT|Copi" r"lot)\b",
    re.IGNORECASE,
)  # fmt: skip


def test_the_project_speaks_of_itself_alone() -> None:
    """No path of somebody's machine, no address of a package registry, no word on who or what wrote it."""
    wrong = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if found := ELSEWHERE.search(line):
                wrong.append(f"{path.relative_to(ROOT)}:{number}: '{found.group()}'")
    assert not wrong, "\n".join(wrong)


def test_no_large_file_is_kept() -> None:
    adapters = PACKAGE / "hub" / "adapters"  # weights that are meant to come with the package, 10 MB in all
    files = [path for path in tracked() if not path.is_relative_to(adapters)]
    large = [f"{path.relative_to(ROOT)}: {size}" for path in files if (size := path.stat().st_size) > 500_000]
    assert not large, f"over 500 kB: {large}"
    assert sum(path.stat().st_size for path in adapters.rglob("*")) < 11_000_000
