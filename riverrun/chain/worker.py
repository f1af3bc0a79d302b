"""The process that runs one stage: `python -m riverrun.chain.worker`, started by chain.process."""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any

from riverrun.base.memory import keep_freed_memory
from riverrun.base.progress import Progress
from riverrun.chain.process import die_with_parent, peak_memory, show_error
from riverrun.chain.stage import Context
from riverrun.chain.stages import get_stage
from riverrun.chain.summary import pack_result

__all__ = ["main"]


def main() -> int:
    """Read the job, run the stage, write the outcome; whatever a library prints goes to standard error."""
    job = json.loads(sys.stdin.read())
    die_with_parent(job["parent"])
    keep_freed_memory()
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    outcome: dict[str, Any]
    try:
        ctx = Context.from_json(job["context"])
        stage = get_stage(job["stage"])
        result = stage.run(ctx, ctx.folder(stage.name), Progress(job["mode"]))
        outcome = {"result": pack_result(result, peak_memory())}
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        outcome = {"error": show_error(error), "trace": traceback.format_exc()}
    answer.write(json.dumps(outcome, default=float))
    answer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
