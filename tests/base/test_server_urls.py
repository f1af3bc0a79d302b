"""Addresses of servers: read, written without the password, quoted; what is wrong is said in one sentence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from riverrun.base.config import apply_overrides, build_config
from riverrun.base.errors import ConfigError, InputError
from riverrun.base.servers import Server, hide_password, is_url
from riverrun.chain.spec import AppSpec, DatabaseSpec

NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30)
SPEC = {"name": "x", "system": "s", "candidates": ["m"], "synthesis": {}}


@given(user=NAMES, database=NAMES, schema=NAMES, password=NAMES, port=st.integers(1, 65535))
def test_a_url_says_everything_but_the_password(
    user: str, database: str, schema: str, password: str, port: int
) -> None:
    server = Server("postgres", "db.example", port, user, database, schema, password=password)
    assert Server.parse(server.url, password=password) == server
    assert Server.parse(server.url).password == ""
    assert password not in repr(server).replace(repr(user), "").replace(repr(database), "").replace(
        repr(schema), ""
    ) or (
        password in "Server(dialect='postgres', host='db.example', port=, user=, database=, schema=, socket='', "
        f"sslmode='prefer', sslrootcert=''){port}"
    )


def test_urls_as_people_write_them() -> None:
    found = Server.parse("mariadb+pymysql://ann:p%40ss%2Fw@[::1]/my%20shop?socket=/run/x.sock&sslmode=require")
    assert (found.dialect, found.user, found.password, found.host, found.port, found.database) == (
        *("mysql", "ann", "p@ss/w", "::1", 3306, "my shop"),
    )
    assert found.url == "mysql://ann@[::1]/my%20shop?socket=/run/x.sock&sslmode=require"
    assert (
        Server.parse("postgres://a@h/d?schema=s", password="pw").with_password("").url == "postgresql://a@h/d?schema=s"
    )
    assert is_url("postgresql://a@h/d")
    assert not is_url("C:/shop.sqlite")
    assert not is_url("data/shop.sqlite")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mssql://sa:hunter2@h/d", "databases are SQLite files"),
        ("postgresql://ann:hunter2@h/", "a user and a database are needed"),
        ("postgresql://h/d", "a user and a database are needed"),
        ("postgresql://ann:hunter2@h/d/e", "a user and a database are needed"),
        ("postgresql://ann:hunter2@h/d?scheme=x", "no such key 'scheme'. Did you mean 'schema'"),
        ("postgresql://ann:hunter2@h:port/d", "the address cannot be read"),
        ("postgresql://ann:hunter2/x@h/d", "the address cannot be read"),
        ("postgresql://ann:hunter2@h/d?sslmode=maybe", "sslmode is one of"),
        ("mysql://ann:hunter2@h/d?schema=x", "MySQL has no schemas"),
    ],
)
def test_what_is_wrong_is_said_without_the_password(url: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        Server.parse(url)
    assert words in str(caught.value)
    assert "hunter2" not in str(caught.value)
    for spec in ({"url": url}, {"url": url, "path": "x"}, {"url": url, "row_limit": 0}, {"url": [url]}):
        with pytest.raises(ConfigError) as wrong:
            build_config(AppSpec, SPEC | {"database": spec})
        assert "hunter2" not in str(wrong.value)
    with pytest.raises(ConfigError) as wrong:
        apply_overrides({}, [f"database.url {url.partition('?')[0]}"])
    assert "hunter2" not in str(wrong.value)


def test_a_spec_holds_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="put it into the environment variable") as caught:
        build_config(AppSpec, SPEC | {"database": {"url": "mysql://ann:hunter2@h/d"}})
    assert "hunter2" not in str(caught.value)
    spec = DatabaseSpec(url="mysql://ann@h/d", password_variable="SHOP_PW")
    monkeypatch.setenv("SHOP_PW", "hunter2")
    assert spec.server().password == "hunter2"
    assert spec.server("mysql://bob:other@h/d").password == "other"
    assert "hunter2" not in spec.model_dump_json()


def test_hidden_passwords() -> None:
    assert hide_password("at mysql://a:b@c@h/d and postgresql://a:b/c@h/d") == (
        "at mysql://a:***@h/d and postgresql://a:***@h/d"
    )
    assert hide_password("postgresql://a@h/d, http://x:80/y") == "postgresql://a@h/d, http://x:80/y"


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pymysql", None)
    with (
        pytest.raises(InputError, match=r"pip install 'riverrun\[servers\]'"),
        Server.parse("mysql://a@h/d").session(1),
    ):
        pass
