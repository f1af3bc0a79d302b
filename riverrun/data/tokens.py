"""Conversations to token ids and labels, by the renderer that serving uses too (`wire` + the model's template).

Does not cover packing (see `packing`) and knows no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from riverrun.base.errors import InputError
from riverrun.base.types import Message, ToolSpec
from riverrun.models.chat import ChatTemplate
from riverrun.models.tokenizer import Tokenizer
from riverrun.wire.codec import Codec

__all__ = ["EncodedRows", "TokenRow", "encode_conversation", "encode_rows", "encode_text"]


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One training example. `learned[i]` says whether token i is predicted for the loss (never from another row).

    Both are sequences of one length: tuples, or arrays that lie in a shard.
    """

    id: str
    ids: Sequence[int]
    learned: Sequence[bool]

    @property
    def label_tokens(self) -> int:
        """Tokens that count in the loss; the first token of a row has nothing to be predicted from."""
        if isinstance(self.learned, np.ndarray):
            return int(np.count_nonzero(self.learned[1:]))
        return sum(self.learned[1:])


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """rows + every row left out, with its reason: len(rows) + len(dropped) = rows given."""

    rows: list[TokenRow]
    dropped: list[tuple[str, str]]  # (id, reason)


def encode_conversation(
    messages: Sequence[Message],
    tools: Sequence[ToolSpec],
    *,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    codec: Codec,
    row_id: str = "",
) -> TokenRow:
    """Render with the tool codec and the template, then tokenise; InputError when nothing is to be learned."""
    ids, learned = template.encode_with_labels(tokenizer, codec.lower(messages, tools))
    row = TokenRow(row_id, tuple(ids), tuple(learned))
    if row.label_tokens == 0:
        raise InputError(f"row '{row_id}' has no assistant turn to learn from")
    return row


def encode_text(text: str, *, tokenizer: Tokenizer, row_id: str = "") -> TokenRow:
    """Plain text, every token learned, after the begin token that scoring puts before a text too."""
    start = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
    ids = ([] if start is None else [start]) + tokenizer.encode(text)
    row = TokenRow(row_id, tuple(ids), (True,) * len(ids))
    if row.label_tokens == 0:
        raise InputError(f"row '{row_id}' has no text to learn from")
    return row


def encode_rows(
    conversations: Iterable[tuple[str, Sequence[Message] | str, Sequence[ToolSpec]]],
    *,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    codec: Codec,
    max_tokens: int,
) -> EncodedRows:
    """Encode (id, messages, tools) or (id, text, ()) rows; those without a label or too long are dropped and told."""
    rows: list[TokenRow] = []
    dropped: list[tuple[str, str]] = []
    for row_id, messages, tools in conversations:
        try:
            if isinstance(messages, str):
                row = encode_text(messages, tokenizer=tokenizer, row_id=row_id)
            else:
                row = encode_conversation(
                    messages, tools, tokenizer=tokenizer, template=template, codec=codec, row_id=row_id
                )
        except InputError as error:
            dropped.append((row_id, str(error)))
            continue
        if len(row.ids) > max_tokens:
            dropped.append((row_id, f"{len(row.ids)} tokens, the limit is {max_tokens}"))
            continue
        rows.append(row)
    return EncodedRows(rows, dropped)
