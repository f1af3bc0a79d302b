"""How commands end: one sentence on standard error and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

__all__ = ["errors"]


@contextmanager
def errors() -> Iterator[None]:
    """One sentence on standard error and the exit code of the error's class."""
    import os

    from riverrun.base.errors import RiverrunError

    try:
        yield
    except RiverrunError as error:
        if os.environ.get("RIVERRUN_DEBUG"):
            raise
        from riverrun.chain.words import word

        print(f"{word('error')}: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        from riverrun.chain.words import word

        print(f"\n{word('interrupted')}", file=sys.stderr)
        raise typer.Exit(130) from None
    except BrokenPipeError:
        # The reader of our output has gone; Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
