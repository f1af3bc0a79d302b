"""The machine as the planner sees it: a handful of numbers, measured by somebody else or taken from the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from riverrun.base.errors import InputError, nearest
from riverrun.plan.tables import read_table

__all__ = ["Hardware", "accelerator", "accelerators"]


@dataclass(frozen=True)
class Hardware:
    """One device. `rates` are FLOP/s that matrix products of training size reach, by type of the operands.

    bandwidth: bytes/s of main memory (0: not known, then time that memory traffic takes is left out).
    """

    name: str
    memory_bytes: int
    rates: Mapping[str, float]
    cores: int = 1
    bandwidth: float = 0.0
    source: str = field(default="measured", compare=False)

    def __post_init__(self) -> None:
        if self.memory_bytes <= 0 or any(rate <= 0 for rate in self.rates.values()) or self.bandwidth < 0:
            raise InputError(
                f"hardware '{self.name}' needs memory and rates above 0, got {self.memory_bytes} bytes "
                f"and {dict(self.rates)}: measure them again"
            )

    def rate(self, dtype: str) -> float:
        """FLOP/s for a type of operands; InputError naming the measured ones when it is not known."""
        if dtype not in self.rates:
            known = ", ".join(sorted(self.rates)) or "none"
            raise InputError(
                f"no rate is known for {dtype} on '{self.name}', measured: {known}: measure it or use those"
            )
        return self.rates[dtype]


def accelerators() -> list[str]:
    """Names in the table."""
    return sorted(read_table("accelerators", "accelerators"))


def accelerator(name: str) -> Hardware:
    """A device of the table, its rates already reduced to what training reaches."""
    table = read_table("accelerators", "accelerators")
    if name not in table:
        raise InputError(f"accelerator '{name}' is not in the table.{nearest(name, table)}")
    entry = table[name]
    rates = {dtype: float(peak) * float(entry["efficiency"]) for dtype, peak in entry["peak"].items()}
    return Hardware(name, int(entry["memory_bytes"]), rates, 1, float(entry["bandwidth"]), str(entry["source"]))
