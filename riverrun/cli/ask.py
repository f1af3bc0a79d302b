"""`riverrun ask`: a file of questions through the deployed endpoint, answers in the file's order."""

from __future__ import annotations

import json
from pathlib import Path

from riverrun.chain.asking import ask_run, read_asked

__all__ = ["ask_command"]


def ask_command(run: Path, questions: Path, as_json: bool, database: str) -> None:
    """Print one line an answer: JSON objects, or the question and its answer for people."""
    asked = read_asked(questions)
    for answer in ask_run(run, asked, database=database):
        if as_json:
            print(json.dumps(answer, ensure_ascii=False, default=str), flush=True)
            continue
        print(f"> {answer['question']}")
        if answer["sql"]:
            print(f"  [{answer['sql']}]")
        said = f"error: {answer['error']}" if answer["error"] else answer["answer"]
        print(f"  {said}", flush=True)
