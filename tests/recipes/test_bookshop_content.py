"""The bookshop example: its files are complete, fit each other and keep sealed and trained apart."""

import collections
import importlib.util
import re
import sqlite3
from html.parser import HTMLParser
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")

SHOP = Path(__file__).resolve().parents[2] / "recipes" / "bookshop"
SITE = SHOP / "site"
DATABASE_KINDS = {"lookup", "filter", "count", "aggregate", "join", "none_found"}
DROP_REASONS = {"duplicate", "near_duplicate", "abusive", "spam", "too_short"}
MASK_KINDS = {"email", "phone", "card", "iban", "ip", "address"}


def load(name):
    return yaml.safe_load((SHOP / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def intents():
    return load("intents.yaml")["intents"]


@pytest.fixture(scope="module")
def choices():
    return load("choices.yaml")


@pytest.fixture(scope="module")
def safety():
    return load("safety.yaml")


@pytest.fixture(scope="module")
def expected():
    return load("site_expected.yaml")


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("bookshop_make_database", SHOP / "make_database.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def database(maker, tmp_path_factory):
    path = tmp_path_factory.mktemp("bookshop") / "shop.sqlite"
    maker.build(path)
    connection = sqlite3.connect(path)
    yield connection
    connection.close()


BLOCKS = {"p", "li", "td", "th", "tr", "h1", "h2", "h3", "h4", "dt", "dd", "div", "br", "summary", "details"}
SKIPPED = {"script", "style", "title", "nav", "footer", "aside", "form", "button"}


class Text(HTMLParser):
    """The text of a page's main part, roughly: enough to look answers up in it."""

    def __init__(self):
        super().__init__()
        self.parts, self.depth = [], 0

    def handle_starttag(self, tag, attrs):
        self.depth += tag in SKIPPED
        if tag in BLOCKS:
            self.parts.append(" ")

    def handle_endtag(self, tag):
        self.depth -= tag in SKIPPED and self.depth > 0
        if tag in BLOCKS:
            self.parts.append(" ")

    def handle_data(self, data):
        if not self.depth:
            self.parts.append(data)


def page_text(name):
    parser = Text()
    parser.feed((SITE / name).read_text(encoding="utf-8"))
    parser.close()
    return " ".join("".join(parser.parts).split())


def stands_in(option, text):
    return re.search(r"(?<![\w£.])" + re.escape(option.lower()) + r"(?!\w|\.\d)", text.lower()) is not None


def literal(value):
    return str(value) if isinstance(value, int) else "'" + str(value).replace("'", "''") + "'"


def slot_values(slot, database):
    if "query" in slot:
        return [row[0] for row in database.execute(slot["query"])]
    if "range" in slot:
        low, high = slot["range"]
        return list(range(low, high + 1))
    return slot["values"]


def plain(text):
    return re.sub(r"[^\w{}]+", " ", text.lower()).strip()


# the database


def test_database_is_the_same_every_time(maker, tmp_path):
    def dump(path, seed):
        maker.build(path, seed)
        connection = sqlite3.connect(path)
        lines = list(connection.iterdump())
        connection.close()
        return lines

    first = dump(tmp_path / "a.sqlite", 7)
    assert first == dump(tmp_path / "b.sqlite", 7)
    assert first != dump(tmp_path / "c.sqlite", 8)


@pytest.mark.parametrize("seed", [7, 1, 42])
def test_database_is_large_and_its_references_hold(maker, tmp_path, seed):
    path = tmp_path / "shop.sqlite"
    counts = maker.build(path, seed)
    assert sum(counts.values()) >= 5000
    assert counts["customers"] == 600
    assert counts["orders"] == 1500
    assert counts["books"] >= 300
    connection = sqlite3.connect(path)

    def one(sql):
        return connection.execute(sql).fetchone()[0]

    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    assert one("SELECT COUNT(DISTINCT title) FROM books") == counts["books"]
    assert one("SELECT COUNT(DISTINCT name) FROM customers") == counts["customers"]
    assert one("SELECT MIN(id) FROM orders") == 10001
    assert one("SELECT COUNT(DISTINCT genre) FROM books") >= 20
    assert one("SELECT COUNT(DISTINCT city) FROM customers") >= 40
    assert one("SELECT COUNT(DISTINCT carrier) FROM shipments") >= 6
    assert one("SELECT COUNT(DISTINCT author) FROM books") >= 95
    assert one("SELECT MAX(n) FROM (SELECT COUNT(*) AS n FROM order_lines GROUP BY order_id)") <= 4
    assert one("SELECT COUNT(*) FROM orders WHERE id NOT IN (SELECT order_id FROM order_lines)") == 0
    assert (
        one(
            "SELECT COUNT(*) FROM returns WHERE NOT EXISTS (SELECT 1 FROM order_lines WHERE "
            "order_lines.order_id = returns.order_id AND order_lines.book_id = returns.book_id)"
        )
        == 0
    )
    assert one("SELECT COUNT(*) FROM shipments WHERE delivered < shipped") == 0
    # "the cheapest", "the newest", "the first" have one answer each
    assert one("SELECT COUNT(*) FROM (SELECT 1 FROM books GROUP BY genre, price HAVING COUNT(*) > 1)") == 0
    assert one("SELECT COUNT(*) FROM (SELECT 1 FROM books GROUP BY author, year HAVING COUNT(*) > 1)") == 0
    assert one("SELECT COUNT(*) FROM (SELECT 1 FROM customers GROUP BY joined HAVING COUNT(*) > 1)") == 0
    titles = [row[0] for row in connection.execute("SELECT title FROM books")]
    assert all(2 <= len(title.split()) <= 5 for title in titles)
    assert any("'" in title for title in titles)
    connection.close()


# intents


def test_intents_are_many_and_every_kind_is_there(intents):
    names = [intent["name"] for intent in intents]
    assert len(set(names)) == len(names)
    kinds = collections.Counter(intent["kind"] for intent in intents)
    assert set(kinds) == DATABASE_KINDS | {"page", "chat"}
    assert 28 <= sum(kinds[kind] for kind in DATABASE_KINDS) <= 34
    assert kinds["chat"] >= 10
    pages = [set(intent["phrasings"]) for intent in intents if intent["kind"] == "page"]
    assert sum(1 for parts in pages if parts == {"train", "dev"}) >= 26
    assert sum(1 for parts in pages if parts == {"sealed"}) >= 12
    assert all(parts in ({"train", "dev"}, {"sealed"}) for parts in pages)


def test_phrasings_are_enough(intents):
    least = {"page": (6, 2, 3), "chat": (12, 3, 4)}
    for intent in intents:
        wanted = dict(zip(("train", "dev", "sealed"), least.get(intent["kind"], (16, 4, 8)), strict=True))
        for part, phrasings in intent["phrasings"].items():
            assert len(phrasings) >= wanted[part], (intent["name"], part)


def test_no_phrasing_stands_twice(intents):
    seen = {}
    for intent in intents:
        for part, phrasings in intent["phrasings"].items():
            for phrasing in phrasings:
                key = plain(phrasing)
                assert key not in seen, (phrasing, intent["name"], part, seen[key])
                seen[key] = (intent["name"], part)


def test_sealed_phrasings_differ_by_more_than_a_comma(intents):
    for intent in intents:
        known = [set(plain(p).split()) for part in ("train", "dev") for p in intent["phrasings"].get(part, [])]
        for phrasing in intent["phrasings"].get("sealed", []):
            own = set(plain(phrasing).split())
            assert all(len(own & other) / len(own | other) < 0.8 for other in known), phrasing


def test_slots_of_phrasings_and_sql_agree(intents):
    for intent in intents:
        slots = set(intent.get("slots", {}))
        if intent["kind"] in DATABASE_KINDS:
            assert set(re.findall(r"\{(\w+)\}", intent["sql"])) == slots, intent["name"]
        for phrasings in intent["phrasings"].values():
            for phrasing in phrasings:
                assert set(re.findall(r"\{(\w+)\}", phrasing)) == slots, phrasing


def test_every_sql_runs_and_finds_rows(intents, database):
    for intent in intents:
        if intent["kind"] not in DATABASE_KINDS:
            continue
        slots = {name: slot_values(slot, database) for name, slot in intent["slots"].items()}
        assert all(len(set(values)) >= 5 for values in slots.values()), intent["name"]
        found, asked = 0, 40
        for turn in range(asked):
            row_of = {name: values[(turn * 17 + 3) % len(values)] for name, values in slots.items()}
            cursor = database.execute(intent["sql"].format(**{k: literal(v) for k, v in row_of.items()}))
            columns = [column[0] for column in cursor.description]
            rows = cursor.fetchall()
            good = bool(rows) and None not in rows[0]
            found += good
            if good:
                intent["answer"].format(**(dict(zip(columns, rows[0], strict=True)) | row_of))
        if intent["kind"] == "none_found":
            assert found == 0
            assert all(len(values) >= 24 for values in slots.values())
        elif len(slots) == 2:  # "below a price", "newer than": now and then there is none
            assert found >= 0.85 * asked, intent["name"]
        elif intent["name"] in ("books_of_year",):
            assert found >= 0.9 * asked
        else:
            assert found == asked, (intent["name"], found)


def test_no_sql_touches_personal_columns_or_writes(intents):
    for intent in intents:
        if "sql" in intent:
            assert intent["sql"].startswith("SELECT ")
            assert not re.search(r"\b(email|phone|drop|delete|update|insert|alter)\b", intent["sql"], re.I)


def test_page_intents_keep_to_their_side(intents, choices, expected):
    trained = {i["page"] for i in intents if i["kind"] == "page" and "train" in i["phrasings"]}
    sealed = {i["page"] for i in intents if i["kind"] == "page" and "sealed" in i["phrasings"]}
    trained |= {c["page"] for c in choices["train"]}
    sealed |= {c["page"] for c in choices["sealed"]}
    assert not trained & sealed
    assert trained | sealed <= set(expected["keep"])


def test_chat_intents_have_answers(intents):
    for intent in intents:
        if intent["kind"] == "chat":
            assert len(intent["answers"]) >= 2
            assert "sql" not in intent


# choices


def test_choices_are_enough(choices):
    assert len(choices["train"]) >= 160
    assert len(choices["sealed"]) == 60
    assert len({c["page"] for c in choices["train"]}) >= 40
    assert len({c["page"] for c in choices["sealed"]}) >= 20
    questions = [plain(c["question"]) + c["page"] for part in choices.values() for c in part]
    assert len(set(questions)) == len(questions)


def test_every_answer_stands_in_its_page(choices):
    for choice in choices["train"] + choices["sealed"]:
        options, answer = choice["options"], choice["answer"]
        assert len(options) == 4
        assert len(set(options)) == 4
        assert answer == 0
        text = page_text(choice["page"])
        right = options[answer].strip('"')
        assert stands_in(right, text), (choice["page"], right)
        others = [o for o in options[1:] if stands_in(o.strip('"'), text)]
        assert len(others) <= 1, (choice["page"], choice["question"], others)


# the site


def test_every_page_of_the_site_has_its_fate(expected):
    files = {path.name for path in SITE.glob("*.html")}
    keep, drop = set(expected["keep"]), set(expected["drop"])
    assert keep | drop == files
    assert not keep & drop
    assert set(expected["mask"]) <= keep
    assert len(keep - set(expected["mask"])) >= 64
    reasons = collections.Counter(expected["drop"].values())
    assert set(reasons) == DROP_REASONS
    assert reasons["near_duplicate"] >= 6
    assert reasons["duplicate"] >= 2
    assert reasons["abusive"] >= 5
    assert reasons["spam"] >= 5
    assert reasons["too_short"] >= 3
    assert len(expected["mask"]) >= 8
    assert {kind for kinds in expected["mask"].values() for kind in kinds} == MASK_KINDS


def test_pages_that_stay_have_a_body(expected):
    for name in expected["keep"]:
        assert 90 <= len(page_text(name).split()) <= 300, name


def test_pages_name_books_of_the_catalogue(expected, database):
    titles = {row[0] for row in database.execute("SELECT title FROM books")}
    named = set()
    for name in expected["keep"]:
        raw = (SITE / name).read_text(encoding="utf-8").replace("\u00e2\u20ac\u2122", "'")
        named |= set(re.findall(r"<i>(.*?)</i>", raw))
    assert named - titles == {"The Second Harvest"}  # this one is announced, not yet sold
    assert len(named) >= 30


def test_personal_data_stands_only_where_it_is_expected(expected):
    marks = {
        "email": r"[\w.]+@[\w.]+\.\w+",
        "phone": r"(?<![\d-])(?:\+44|0\d{3,4}|\(0)[\d ()-]{6,}\d",
        "card": r"\b(?:\d{4} ){3}\d{4}\b",
        "iban": r"\b[A-Z]{2}\d\d [A-Z]{4}",
        "ip": r"\b\d+\.\d+\.\d+\.\d+\b",
        "address": r"\b\d+ (?:\w+ ){1,2}(?:Street|Road)\b",
    }
    for name in expected["keep"]:
        text = page_text(name)
        found = {kind for kind, mark in marks.items() if re.search(mark, text)}
        wanted = set(expected["mask"].get(name, []))
        assert found == wanted or (name in expected["mask"] and wanted <= found), (name, found, wanted)
    assert any("books@harbourlane.example" in page_text(name) for name in expected["mask"])


def test_planted_card_passes_luhn(expected):
    cards = [
        re.sub(r"\D", "", card)
        for name, kinds in expected["mask"].items()
        if "card" in kinds
        for card in re.findall(r"\b(?:\d{4} ){3}\d{4}\b", page_text(name))
    ]
    assert cards
    for card in cards:
        digits = [int(d) for d in reversed(card)]
        assert sum(digits[0::2] + [sum(divmod(2 * d, 10)) for d in digits[1::2]]) % 10 == 0


def shingles(text, size=3):
    tokens = re.findall(r"\w+", text.lower())
    return {tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)}


def test_copies_are_close_and_other_pages_are_not(expected):
    kept = {name: shingles(page_text(name)) for name in expected["keep"]}

    def nearest(name, of):
        return max(
            (len(of & other) / len(of | other), kept_name) for kept_name, other in kept.items() if kept_name != name
        )

    for name, reason in expected["drop"].items():
        if reason in ("duplicate", "near_duplicate"):
            likeness, original = nearest(name, shingles(page_text(name)))
            assert likeness > 0.7, name
            assert original.split(".")[0] == name.rsplit("_", 1)[0]
            assert original < name  # files are read in this order, the first of two copies stays
    for name, own in kept.items():
        assert nearest(name, own)[0] < 0.3, name


# safety


def test_safety_prompts_are_enough_and_apart(safety):
    for part, least in (("train", 22), ("sealed", 22)):
        kinds = collections.Counter(entry["kind"] for entry in safety[part])
        assert set(kinds) == {"abuse", "privacy", "injection"}
        assert min(kinds.values()) >= least
    prompts = [plain(entry["prompt"]) for part in safety.values() for entry in part]
    assert len(set(prompts)) == len(prompts)
    for kind in ("abuse", "privacy", "injection"):
        assert len({entry["reply"] for entry in safety["train"] if entry["kind"] == kind}) >= 8


def test_safety_checks_compile_and_pass_a_refusal(safety):
    replies = {entry["reply"] for entry in safety["train"]}
    for entry in safety["sealed"]:
        assert entry["check"]["forbid"]
        for rule in entry["check"]["forbid"]:
            pattern = re.compile(re.sub(r"^(sql|text):", "", rule), re.I)
            if not rule.startswith("sql:"):
                assert not any(pattern.search(reply) for reply in replies), (entry["prompt"], rule)
                assert not pattern.search("Order 10777 was placed on 2024-11-03 and is delivered."), rule
