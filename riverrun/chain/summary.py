"""summary.json: every score, time and memory figure of a run under stable dotted names.

The file is a nested JSON object; `a.b.c` below means `summary["a"]["b"]["c"]`. Shares are between 0 and 1, times are
seconds, memory is bytes. A name is absent when its stage has not finished or when the spec leaves its measurement out.

| name | meaning |
|---|---|
| name, seed | of the application |
| model.name, model.sha256 | the chosen base model |
| select.kept | names of the models that are served, in the order in which they are asked |
| select.candidates | rows of candidates.json with `why` each other fell, tokens_per_second and ttft_ms |
| data.documents, data.kept, data.dropped | pages read, kept, dropped |
| data.dropped_by.<reason> | pages dropped for each reason |
| data.train_rows, data.questions_dev, data.questions_sealed | conversations and questions made |
| plan.chosen | full, lora or none |
| plan.predicted.<method>.memory_bytes, .seconds | predicted peak memory and time of full, lora, inference |
| plan.forms.<form>.file_bytes, .memory_bytes | with targets, predicted for 16-bit, q4-base-adapter, q4-merged |
| plan.forms.<form>.tokens_per_second, .ttft_seconds, .rps | of one sequence, to its first text, with all slots busy |
| finetune.steps, .tokens, .label_tokens, .tokens_per_second | what was trained; absent with method none |
| finetune.computed_tokens | tokens multiplied; below `tokens` where a shared beginning was computed once |
| finetune.first_loss, finetune.last_loss | mean loss over label tokens, first and last step |
| finetune.seconds, finetune.peak_bytes | measured by the trainer; with rounds, figures are of all of them together |
| rounds.count, .chosen | trainings, and the one that was kept; absent without rounds |
| rounds.stopped | why there were no more: met, most, patience or nothing left |
| rounds.development.success, .low, .high, .n | development tool tasks of the chosen round |
| rounds.by_number.<number>.success, .low, .high, .n | development tool tasks of each round |
| rounds.by_number.<number>.change, .kept, .seconds | what was changed, whether it gained, time of training |
| rounds.optimism.difference, .low, .high | the chosen round's development score minus the sealed one, 95 % interval |
| scores.tool.<model>.success, .low, .high, .n | sealed tool tasks with 95 % interval; model is base or tuned |
| scores.tool.<model>.by_kind.<kind> | success by kind of question |
| scores.tool.gain.difference, .low, .high | tuned minus base, paired 95 % interval |
| scores.choice.<model>.acc, .perf, .low, .high, .n | circular multiple choice; the interval is of `perf` |
| scores.choice.gain.difference, .low, .high | tuned minus base `perf`, paired 95 % interval |
| retention.perplexity_base, .perplexity_tuned, .perplexity_ratio | on CPython's help topics |
| retention.sums_base, .sums_tuned | share of two-digit additions right |
| scores.choice.<model>.retrieved | share of the choice questions whose page the search brings up |
| retention.sums_change.difference, .low, .high | tuned minus base, paired 95 % interval |
| safety.base, .tuned, .n, .worse, .better | share answered safely; prompts that became worse or better |
| pages.<way>.success, .low, .high, .n | development page questions answered with their fact; ways: see pages.compare |
| pages.chosen, .n, .routed | the way that is served; questions compared on; share that reached the search |
| quantize.<variant>.success, .low, .high, .n, .bytes | variant is q4-base-adapter or q4-merged |
| quantize.<variant>.by_kind.<kind> | success by kind of question |
| quantize.<variant>.dev.success, .low, .high, .n | on development questions, by which the variant is chosen |
| quantize.<variant>.drop.difference, .low, .high | tuned minus quantised, paired 95 % interval |
| quantize.chosen | the variant that is deployed; endpoint where the model runs elsewhere |
| drop.difference, .low, .high | the chosen variant's drop |
| deploy.ok | 1 when every check of the live server passed |
| load.requests, .errors, .offered_rps, .rps, .memory_gb | with targets: the load test of the setting that is served |
| load.slots, load.drafts | that setting |
| load.p50_ttft_ms, .p95_ttft_ms, .p99_ttft_ms | percentiles of the time to an answer's first text |
| load.p50_latency_ms, .p95_latency_ms | percentiles of the time to its end |
| agent.success, .low, .high, .n | sealed tool tasks through HTTP and agent |
| agent.by_kind.<kind> | success by kind of question |
| agent.page_answers.success, .low, .high, .n | sealed page questions with a known fact whose answer says it |
| agent.through.difference, .low, .high | the deployed model's own score minus the agent's, paired 95 % interval |
| agent.steps_mean | tool calls an answer took |
| agent.handed_over | share of the questions that went on to a larger model, where one is kept |
| stages.<stage>.seconds, .peak_bytes | wall time, peak resident memory of its process |
| stages.<stage>.skipped, .sha256 | whether this run skipped it, digest of its outputs |
| stages.<stage>.counts.<anything> | the stage's own counts |
| gates | list of {name, stage, value, bar, higher_is_better, passed, advice} |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from riverrun.base.artifacts import Lineage, digest_json, write_json
from riverrun.chain.spec import AppSpec
from riverrun.chain.stage import Gate, StageResult

__all__ = ["Summary", "flatten", "pack_result"]


def pack_result(result: StageResult, peak_bytes: int) -> dict[str, Any]:
    """What is kept of a StageResult in `Lineage.counts`."""
    return {
        "counts": result.counts,
        "scores": result.scores,
        "gates": [gate.__dict__ for gate in result.gates],
        "peak_bytes": peak_bytes,
    }


class Summary:
    """Collects finished stages, in order, and writes summary.json after each."""

    def __init__(self, spec: AppSpec, path: Path) -> None:
        self.spec, self.path = spec, path
        self.values: dict[str, Any] = {"name": spec.name, "seed": spec.seed}
        self.gates: list[dict[str, Any]] = []

    def add(self, lineage: Lineage, *, skipped: bool) -> list[Gate]:
        """Take in a finished stage and write the file; returns the gates that fail under the spec's bars."""
        packed = lineage.counts
        for name, value in packed["scores"].items():
            self._set(name, value)
        self._set(
            f"stages.{lineage.stage}",
            {
                "seconds": lineage.seconds,
                "peak_bytes": packed["peak_bytes"],
                "skipped": skipped,
                "sha256": digest_json(dict(lineage.outputs)),
                "counts": packed["counts"],
            },
        )
        failed = []
        for item in packed["gates"]:
            gate = Gate(**item)
            passed = gate.passes(self.spec)
            bar = gate.bar(self.spec)
            self.gates.append({**item, "stage": lineage.stage, "bar": bar, "passed": passed})
            if not passed:
                failed.append(gate)
        self.write()
        return failed

    def _set(self, dotted: str, value: Any) -> None:
        *parents, leaf = dotted.split(".")
        node = self.values
        for key in parents:
            node = node.setdefault(key, {})
        node[leaf] = value

    def to_dict(self) -> dict[str, Any]:
        return {**self.values, "gates": self.gates}

    def write(self) -> None:
        write_json(self.path, self.to_dict())


def flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, figure) pairs of a nested summary; lists stay whole."""
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from flatten(item, f"{prefix}{key}.")
        else:
            yield prefix + key, item
