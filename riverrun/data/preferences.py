"""Pairs of answers to one prompt, and single answers judged good or bad, as groups of rows that share the prompt.

A pair is one `Group` of two rows, the chosen one first: a pack computes their prompt once. Only what comes after the
prompt is learned, also where the prompt holds earlier turns of the assistant. Knows no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from riverrun.base.errors import CapacityError, InputError
from riverrun.base.types import Message, ToolSpec
from riverrun.data.packing import MIN_SHARED, Group, Pack
from riverrun.data.tokens import TokenRow
from riverrun.models.chat import ChatTemplate
from riverrun.models.tokenizer import Tokenizer
from riverrun.wire.codec import Codec

__all__ = [
    "JudgedGroup",
    "PairedRows",
    "PreferencePair",
    "TaggedRows",
    "completion_row",
    "cut_groups",
    "judged_groups",
    "judged_of",
    "pair_group",
    "pair_rows",
    "pairs_of",
    "split_prompt",
]


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two rows that begin with the same prompt; only what follows it is learned."""

    id: str
    chosen: TokenRow
    rejected: TokenRow

    @property
    def group(self) -> Group:
        return pair_group(self.chosen, self.rejected)


@dataclass(frozen=True, slots=True)
class JudgedGroup(Group):
    """Rows: the answer to a prompt, then another prompt's answer to it, of which the estimate of the KL is made."""

    desirable: bool = True


def split_prompt(
    chosen: Sequence[Message], rejected: Sequence[Message], *, row_id: str = ""
) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]:
    """(prompt, chosen answer, rejected answer) of two whole conversations: the messages that both begin with."""
    count = 0
    while count < min(len(chosen), len(rejected)) and chosen[count] == rejected[count]:
        count += 1
    while count and chosen[count - 1].role == "assistant":  # what both said first is still an answer to be judged
        count -= 1
    if not count:
        raise InputError(
            f"row '{row_id}': chosen and rejected have no common prompt (they differ from their first message on): "
            "give both the same messages up to the answer"
        )
    return tuple(chosen[:count]), tuple(chosen[count:]), tuple(rejected[count:])


def completion_row(
    prompt: Sequence[Message],
    completion: Message | Sequence[Message],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    codec: Codec,
    *,
    tools: Sequence[ToolSpec] = (),
    row_id: str = "",
    name: str = "completion",
) -> TokenRow:
    """The whole conversation, of which only the completion is learned; InputError for an empty prompt or completion."""
    after = [completion] if isinstance(completion, Message) else list(completion)
    if not prompt:
        raise InputError(f"row '{row_id}' has no prompt: give the messages that the answer is an answer to")
    if not any(m.role == "assistant" and (m.text.strip() or m.tool_calls) for m in after):
        raise InputError(f"row '{row_id}': the {name} answer is empty: give a text or a tool call")
    before = template.encode(tokenizer, codec.lower(prompt, tools))
    ids, flags = template.encode_with_labels(tokenizer, codec.lower([*prompt, *after], tools))
    learned = np.asarray(flags, dtype=np.bool_)
    learned[: _common(before, ids)] = False  # earlier turns of the assistant
    row = TokenRow(row_id, tuple(ids), tuple(learned.tolist()))
    if row.label_tokens == 0:
        raise InputError(f"row '{row_id}': the {name} answer has no token of its own after the prompt")
    return row


def pair_rows(
    prompt: Sequence[Message],
    chosen: Message | Sequence[Message],
    rejected: Message | Sequence[Message],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    codec: Codec,
    *,
    tools: Sequence[ToolSpec] = (),
    row_id: str = "",
) -> tuple[TokenRow, TokenRow]:
    """(chosen row, rejected row); InputError where the two are equal, an answer is empty or there is no prompt."""
    good, bad = (
        completion_row(prompt, each, tokenizer, template, codec, tools=tools, row_id=row_id, name=name)
        for each, name in ((chosen, "chosen"), (rejected, "rejected"))
    )
    if tuple(good.ids) == tuple(bad.ids):
        raise InputError(f"row '{row_id}': chosen and rejected are equal, so nothing is preferred: drop the row")
    return good, bad


def pair_group(chosen: TokenRow, rejected: TokenRow) -> Group:
    """The group of two rows, with the beginning that they share and neither learns."""
    return Group((chosen, rejected), _shared((chosen, rejected)))


def judged_groups(rows: Sequence[TokenRow], desirable: Sequence[bool]) -> list[JudgedGroup]:
    """One group an answer. The unrelated answer of its second row is that of the next row with another prompt.

    InputError when all prompts are equal: then there is no unrelated answer, and KTO has no estimate of its KL.
    """
    starts = [int(np.flatnonzero(np.asarray(row.learned))[0]) for row in rows]
    prompts = [tuple(row.ids[:start]) for row, start in zip(rows, starts, strict=True)]
    # the next row with another prompt, for all rows in one pass from the end over the list written twice
    following = [-1] * len(rows)
    for place in reversed(range(2 * len(rows) - 1)):
        here, after = place % len(rows), (place + 1) % len(rows)
        following[here] = after if prompts[after] != prompts[here] else following[after]
    out = []
    for place, (row, good) in enumerate(zip(rows, desirable, strict=True)):
        if (other := following[place]) < 0:
            raise InputError(
                f"all {len(rows)} rows have one prompt: KTO needs answers to at least two prompts for its KL"
            )
        answer, start = rows[other], starts[other]
        unrelated = TokenRow(
            f"{row.id}/unrelated",
            (*prompts[place], *answer.ids[start:]),
            (*row.learned[: starts[place]], *answer.learned[start:]),
        )
        out.append(JudgedGroup((row, unrelated), _shared((row, unrelated)), good))
    return out


class PairedRows(Protocol):
    """Rows that come in twos."""

    def __len__(self) -> int: ...

    def row(self, index: int) -> TokenRow: ...


class TaggedRows(PairedRows, Protocol):
    """Rows of which `tag` says whether they are good (1) or bad (2)."""

    def tag(self, index: int) -> int: ...


def judged_of(rows: TaggedRows) -> list[JudgedGroup]:
    """The groups of stored rows that carry a judgement; InputError for one that carries none."""
    tags = [rows.tag(index) for index in range(len(rows))]
    if (plain := next((index for index, tag in enumerate(tags) if tag not in (1, 2)), None)) is not None:
        raise InputError(f"row '{rows.row(plain).id}' is not judged: KTO needs rows with a label")
    return judged_groups([rows.row(index) for index in range(len(rows))], [tag == 1 for tag in tags])


def pairs_of(rows: PairedRows) -> list[Group]:
    """The groups of stored pairs: rows 2i and 2i + 1, the chosen one first."""
    return [pair_group(rows.row(index), rows.row(index + 1)) for index in range(0, len(rows), 2)]


def cut_groups(groups: Sequence[Group], micro_tokens: int) -> list[Pack]:
    """Groups in order into packs of at most `micro_tokens`; CapacityError for one that is longer."""
    packs: list[list[Group]] = []
    room = 0
    for group in groups:
        if group.computed_tokens > micro_tokens:
            raise CapacityError(
                f"row '{group.rows[0].id}' and its pair have {group.computed_tokens} tokens, "
                f"a pack holds {micro_tokens}: raise micro_tokens or drop them"
            )
        if group.computed_tokens > room:
            packs.append([])
            room = micro_tokens
        packs[-1].append(group)
        room -= group.computed_tokens
    return [Pack(tuple(each)) for each in packs]


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Tokens that both begin with."""
    size = min(len(first), len(second))
    differ = np.flatnonzero(np.asarray(first[:size]) != np.asarray(second[:size]))
    return int(differ[0]) if len(differ) else size


def _shared(rows: Sequence[TokenRow]) -> int:
    """Tokens of the beginning that stands once: the first own token of a row is never one that is learned."""
    count = len(rows[0].ids) - 1
    for row in rows:
        first = int(np.flatnonzero(np.asarray(row.learned))[0])
        count = min(count, _common(rows[0].ids, row.ids), first - 1, len(row.ids) - 1)
    return count if count >= MIN_SHARED else 0
