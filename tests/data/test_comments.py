"""What comments in CREATE TABLE say: names of columns, meanings of codes, and questions that use both."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.agent.tools.mentions import Mentions
from riverrun.chain.assistant import make_mentions
from riverrun.data.comments import code_meanings, column_comments, spoken_name
from riverrun.data.names import chinese_words
from riverrun.data.schema import read_schema
from riverrun.data.synthesis import SynthesisConfig, synthesise

SCRIPT = """
CREATE TABLE clinics (   -- all of them
  clinic_id INTEGER PRIMARY KEY,
  clinic_name TEXT NOT NULL,      -- 门店名称
  /* the telephone at the desk */
  phone TEXT, "chair count" INTEGER NOT NULL,   -- 牙椅数
  status INTEGER NOT NULL DEFAULT 1 CHECK (status IN (1, 2, 3)),  -- 1营业中 2装修中 3已关闭
  grade TEXT /* A = best, B = good */,
  note TEXT DEFAULT '-- no comment'
  -- the end
);
"""
COLUMNS = ("clinic_id", "clinic_name", "phone", "chair count", "status", "grade", "note")


def test_a_comment_belongs_to_the_column_of_its_line() -> None:
    assert column_comments(SCRIPT, COLUMNS) == {
        "clinic_name": "门店名称",
        "phone": "the telephone at the desk",
        "chair count": "牙椅数",
        "status": "1营业中 2装修中 3已关闭",
        "grade": "A = best, B = good",
    }


def test_comments_in_odd_places() -> None:
    script = """CREATE TABLE t (
  status INTEGER, -- state of the order:
                  -- 0 waiting 1 confirmed
  -- ==== money ====
  -- old INT, -- dropped
  /* the storey
  */
  floor INTEGER, -- storey
  price DECIMAL(10,
    2), -- what it costs
  "check" INT,
  c INT, CHECK (c > 0) -- positive
) -- after"""
    found = column_comments(script, ["status", "floor", "price", "check", "c"])
    assert found == {
        "status": "state of the order: 0 waiting 1 confirmed",
        "floor": "storey",
        "price": "what it costs",
    }


@settings(max_examples=200, deadline=None, derandomize=True)
@given(sql=st.text("(),'\"-/*\n abc[]`", max_size=60))
def test_no_statement_breaks_it(sql: str) -> None:
    assert set(column_comments(sql, ["a", "b"])) <= {"a", "b"}


@pytest.mark.parametrize(
    ("comment", "values", "wanted"),
    [
        ("A = available, R = in repair", ["A", "R"], {"A": "available", "R": "in repair"}),
        ("0待确认 1已确认 4爽约", [0, 1, 4], {0: "待确认", 1: "已确认", 4: "爽约"}),
        ("1: open; 2: closed", [1, 2], {1: "open", 2: "closed"}),
        ("open (O), closed (C)", ["O", "C"], {"O": "open", "C": "closed"}),
        ("BK booked / OUT on hire", ["BK", "OUT", "RET"], {"BK": "booked", "OUT": "on hire"}),
        ("in 2 currencies, since 1999", [1, 2], {}),
        ("a full explanation of what is kept here", ["A", "B"], {}),
        ("A = same, B = same", ["A", "B"], {}),
        ("1 one", [1, 2], {}),
        ("codes", list(range(30)), {}),
        ("0:未知 1:男 2:女", [0, 1, 2], {0: "未知", 1: "男", 2: "女"}),
        ("状态 0:待付 1:已付 2:已发货 默认0", [0, 1, 2], {0: "待付", 1: "已付", 2: "已发货"}),
        ("0 new, 1 paid, 2 shipped, default 0", [0, 1, 2], {0: "new", 1: "paid", 2: "shipped"}),
        ("0 unpaid, 1 paid, default 0", [0, 1], {0: "unpaid", 1: "paid"}),
        ("P=paid,U=unpaid (see doc P)", ["P", "U"], {"P": "paid", "U": "unpaid"}),
        ("1=普通 2=人为", [1, 2], {1: "普通", 2: "人为"}),
        ("0=否，1=是", [0, 1], {}),
        ("rating from 1 to 5", [1, 2, 3, 4, 5], {}),
        ("scale of 1 to 5, 5 is best", [1, 2, 3, 4, 5], {}),
        ("评分1到5", [1, 2, 3, 4, 5], {}),
        ("number of seats (2 or 4)", [2, 4], {}),
        ("1 (low) to 5 (high)", [1, 2, 3, 4, 5], {}),
        ("size S, M or L", ["S", "M", "L"], {}),
        ("0 female 1 male", [0, 1], {0: "female", 1: "male"}),
    ],
)
def test_meanings_of_codes(comment: str, values: list[object], wanted: dict[object, str]) -> None:
    assert code_meanings(comment, values) == wanted


def test_what_a_column_is_called() -> None:
    assert spoken_name("门店名称", {}) == "门店名称"
    assert spoken_name("是否医保项目（国家目录）", {}) == "是否医保项目"
    assert spoken_name("状态 1营业中 2已关闭", {1: "营业中", 2: "已关闭"}) == "状态"
    assert spoken_name("1营业中 2已关闭", {1: "营业中", 2: "已关闭"}) == ""
    assert spoken_name("hull length, in feet", {}) == "hull length"
    assert spoken_name("0=否，1=是", {}) == ""
    assert spoken_name("M or F", {}, ["M", "F"]) == ""
    assert spoken_name("whatever the harbour office wrote into its book", {}) == ""


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "clinics.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(SCRIPT)
        rows = [(n, f"{name}店", f"0571-{n}", 3 + n, 1 + n % 3, "AB"[n % 2], None)
                for n, name in enumerate(["文三", "翠苑", "滨江", "城西", "下沙", "河坊", "良渚", "闲林"])]  # fmt: skip
        connection.executemany("INSERT INTO clinics VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        connection.commit()
    return path


def test_questions_and_notes_speak_of_meanings(database: Path) -> None:
    schema = read_schema(database)
    columns = schema.by_name["clinics"].by_name
    assert columns["status"].codes == ((1, "营业中"), (2, "装修中"), (3, "已关闭"))
    assert columns["status"].kind == "text"
    assert columns["chair count"].spoken == "牙椅数"
    mentions = make_mentions(database, schema)
    assert mentions.note("现在正常营业的有几家？").endswith("(clinics.status: 1)")
    assert mentions.note("文三店有几把牙椅").endswith("(clinics.clinic_name: '文三店'; 牙椅: clinics.\"chair count\")")
    assert mentions.note("哪些店已关闭").endswith("(clinics.status: 3)")
    assert "status" not in mentions.note("不营业的有几家"), "a no before it"
    assert "status" not in mentions.note("营业额最高的是哪家"), "another word"
    paid = [("orders", "state", 0, "待付款"), ("orders", "state", 1, "已付款")]
    orders = Mentions(database, {}, codes=paid)
    assert orders.note("待付款的订单").endswith("(orders.state: 0)")
    assert orders.note("已付款的订单").endswith("(orders.state: 1)")
    assert orders.note("未付款的订单") == "未付款的订单"
    assert "'B'" not in mentions.note("plan B or plan A?"), "a bare code is not looked for"
    config = SynthesisConfig(train=120, dev=0, sealed=0, held_out=0)
    made = synthesise(database, schema, config, language="zh", seed=1, row_limit=50, joins=False).questions["train"]
    coded = [question for question in made if "status" in question.sql and "WHERE" in question.sql]
    assert any("营业中" in question.text or "装修中" in question.text for question in coded)
    assert any("牙椅数" in question.text for question in made)


def test_chinese_words_for_english_names() -> None:
    words = chinese_words([("clinics", ["clinic_id", "phone", "hire_date"]), ("门店", ["电话"])])
    assert words["电话"] == words["联系方式"] == ["clinics.phone"]
    assert words["入职"] == ["clinics.hire_date"]
    assert words["门店"] == ["clinics"], "a table's own Chinese name needs no note"
    many = [(f"t{n}", ["phone"]) for n in range(4)]
    assert "电话" not in chinese_words(many)
    assert Mentions
