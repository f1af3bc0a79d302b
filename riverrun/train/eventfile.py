"""TensorBoard's event files, written without the package: records of TFRecord's framing, each an `Event` message.

Record: length u64, masked CRC-32C of it, data, masked CRC-32C of the data, little-endian (tensorflow,
core/lib/io/record_writer.h). Event: wall_time 1 (double), step 2 (varint), file_version 3 (text), summary 5; Summary:
value 1; Value: tag 1 (text), simple_value 2 (float) (core/util/event.proto, core/framework/summary.proto).
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path

__all__ = ["EventFile"]


@cache
def _table() -> tuple[int, ...]:
    """CRC-32C (Castagnoli) of each byte."""
    out = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        out.append(value)
    return tuple(out)


def _masked_crc(data: bytes) -> int:
    table, value = _table(), 0xFFFFFFFF
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ (value >> 8)
    value ^= 0xFFFFFFFF
    return (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _message(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


class EventFile:
    """One file of scalars in a folder; TensorBoard finds it by its name."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        name = f"events.out.tfevents.{int(now):010d}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}"
        self.path = folder / name
        self._write(struct.pack("<Bd", 0x09, now) + _message(3, b"brain.Event:2"))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add values by tag at a step."""
        parts = b"".join(
            _message(1, _message(1, tag.encode()) + struct.pack("<Bf", 0x15, value)) for tag, value in values.items()
        )
        self._write(struct.pack("<Bd", 0x09, time.time()) + b"\x10" + _varint(step) + _message(5, parts))

    def _write(self, event: bytes) -> None:
        length = struct.pack("<Q", len(event))
        record = length + struct.pack("<I", _masked_crc(length)) + event + struct.pack("<I", _masked_crc(event))
        with open(self.path, "ab") as handle:
            handle.write(record)
