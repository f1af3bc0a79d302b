"""Questions made from pages: only what the search finds, apart by page, and gaps with one right answer."""

from __future__ import annotations

from collections.abc import Sequence

from riverrun.base.types import Document
from riverrun.data.intents import SPLITS
from riverrun.data.page_questions import add_pages, find_topics, gap_choices, page_questions
from riverrun.data.questions import Question

THINGS = ["kettle", "lantern", "anchor", "compass", "violin", "teapot", "ladder", "barrel", "saddle", "candle"]
PAGES = [
    Document(
        f"{thing}.html",
        f"The {thing} page\nCare of the {thing}\n"
        f"Every {thing} from our old workshop is repaired within {11 + number} working days. "
        f"How do I clean a {thing}? A broken {thing} handle costs {31 + number} pounds. "
        f"We store each {thing} in room {51 + number} of the harbour building.",
        metadata={"title": f"Repairing a {thing} | The workshop"},
    )
    for number, thing in enumerate(THINGS)
]


def find(text: str) -> Sequence[str]:
    return [page.id for page in PAGES if page.id.removesuffix(".html") in text.lower()][:2]


def test_topics_are_one_pages_own_and_found() -> None:
    topics = find_topics(PAGES, find)
    texts = {topic.text for topic in topics if topic.page == "kettle.html"}
    assert {"Repairing a kettle", "How do I clean a kettle?"} <= texts
    assert all(topic.page in find(topic.text) for topic in topics)
    forms = {topic.form for topic in topics}
    assert forms == {"topics", "questions", "claims"}
    assert not find_topics(PAGES, lambda _: [])


def test_page_questions_are_apart_by_page_and_sentence() -> None:
    topics = find_topics(PAGES, find)
    asked = {split: page_questions(topics, split, 20, language="en", seed=1) for split in SPLITS}
    assert all(asked.values())
    pages = [{question.page for question in asked[split]} for split in SPLITS]
    assert not (pages[0] & pages[1]) | (pages[0] & pages[2]) | (pages[1] & pages[2])
    for questions in asked.values():
        assert len({question.text for question in questions}) == len(questions) <= 20
        assert all(q.kind == "page" and q.sql is None and q.page in find(q.text) for q in questions)
    assert asked == {split: page_questions(topics, split, 20, language="en", seed=1) for split in SPLITS}


def test_a_question_knows_its_fact() -> None:
    topics = {(topic.page, topic.text): topic.fact for topic in find_topics(PAGES, find)}
    assert topics["kettle.html", "Repairing a kettle"] == ""  # the whole page is about it
    asked = topics["kettle.html", "How do I clean a kettle?"].split("\n")
    assert asked[0] == "A broken kettle handle costs 31 pounds."
    assert topics["kettle.html", "Care of the kettle"].startswith(
        "Every kettle from our old workshop is repaired within 11"
    )
    questions = page_questions(find_topics(PAGES, find), "dev", 20, language="en", seed=1)
    texts = {page.id: page.text for page in PAGES}
    assert any(question.fact for question in questions)
    assert all(line in texts[question.page or ""] for question in questions for line in question.fact.split("\n"))


def test_few_pages_are_divided_by_topic() -> None:
    topics = find_topics(PAGES[:2], find)
    asked = [page_questions(topics, split, 20, language="en", seed=1) for split in SPLITS]
    assert all(asked)


def test_a_question_may_need_both() -> None:
    topics = find_topics(PAGES, find)
    plain = [
        Question(f"q{n}", f"How many x{n}?", "i", "count", "train", "SELECT 1", None, [[1]], "1") for n in range(9)
    ]
    both = add_pages(plain, topics, "train", 4, language="en", seed=1, find=find)
    assert len(both) == 4
    for question in both:
        assert question.kind == "both"
        assert question.sql == "SELECT 1"
        assert question.page in find(question.text)
    assert not add_pages(plain, topics, "train", 4, language="en", seed=1, find=lambda _: [])


def test_gaps_have_one_right_number_from_their_page() -> None:
    choices = gap_choices(PAGES, language="en", seed=1)
    texts = {page.id: page.text for page in PAGES}
    assert choices.train
    assert choices.sealed
    assert not {c.page for c in choices.train} & {c.page for c in choices.sealed}
    for choice in (*choices.train, *choices.sealed):
        right, *wrong = choice.options
        assert choice.answer == 0
        assert right in texts[choice.page]
        assert not [option for option in wrong if option in texts[choice.page]]
        assert len(set(choice.options)) == 4
        assert choice.question.count("___") == 1
    bare = [Document("a", "No number stands here. None at all, whatever you do.")]
    assert gap_choices(bare, language="en", seed=1).train == ()
