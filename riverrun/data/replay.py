"""General text for a fine-tune to keep what the model knew: docstrings of the standard library.

Every Python has it, so nothing is downloaded. The help topics (`pydoc_data.topics`), on which retention is measured,
are not among them.
"""

from __future__ import annotations

import importlib
import inspect
import random
from collections.abc import Sequence

__all__ = ["MODULES", "WIDER", "replay_texts"]

MODULES = [
    "argparse",
    "collections",
    "datetime",
    "decimal",
    "difflib",
    "fractions",
    "functools",
    "inspect",
    "itertools",
    "json",
    "logging",
    "pathlib",
    "random",
    "shutil",
    "statistics",
    "string",
    "subprocess",
    "textwrap",
    "threading",
    "typing",
    "unittest",
    "zipfile",
]
_MORE = """
    array ast asyncio.events asyncio.locks asyncio.streams asyncio.tasks base64 bdb bisect builtins bz2 calendar
    cmath cmd code codecs codeop collections.abc colorsys concurrent.futures compileall configparser contextlib
    copy csv ctypes dataclasses decimal dis doctest email.headerregistry email.message email.parser email.policy
    email.utils enum filecmp fileinput fnmatch ftplib functools getopt getpass gettext glob graphlib gzip hashlib
    heapq hmac html html.parser http.client http.cookies http.server imaplib importlib.metadata importlib.util io
    ipaddress keyword linecache locale lzma mailbox math mimetypes modulefinder multiprocessing.pool netrc numbers
    operator optparse os pdb pkgutil platform plistlib poplib posixpath pprint profile pstats py_compile pyclbr
    pydoc queue re reprlib rlcompleter runpy sched secrets selectors shlex signal smtplib socket socketserver
    sqlite3 ssl stat struct symtable sysconfig tabnanny tarfile tempfile timeit token tokenize trace traceback
    tracemalloc types unicodedata urllib.error urllib.parse urllib.request urllib.robotparser uuid venv warnings
    wave weakref webbrowser wsgiref.handlers wsgiref.util xml.dom.minidom xml.etree.ElementTree xml.sax.handler
    xml.sax.saxutils xmlrpc.client zipapp zipimport zlib zoneinfo
"""
WIDER = [*MODULES, *(name for name in _MORE.split() if name not in MODULES)]
"""More of the same, where much replay is wanted; modules that a Python lacks are passed over."""
SHORTEST = 300


def replay_texts(count: int, *, characters: int, seed: int, modules: Sequence[str] = MODULES) -> list[tuple[str, str]]:
    """At most `count` (id, docstring) pairs of 300 to `characters` characters, the same for the same Python."""
    found: dict[str, str] = {}
    for name in modules:
        try:
            module = importlib.import_module(name)
        except ImportError:  # not on this system, or gone from newer Pythons
            continue
        for attribute, value in sorted(vars(module).items()):
            if getattr(value, "__module__", None) == name and (inspect.isclass(value) or inspect.isroutine(value)):
                text = inspect.getdoc(value) or ""
                if len(text) >= SHORTEST:
                    found.setdefault(text[:characters], f"{name}.{attribute}")
    texts = sorted((origin, text) for text, origin in found.items())
    random.Random(seed).shuffle(texts)
    return texts[:count]
