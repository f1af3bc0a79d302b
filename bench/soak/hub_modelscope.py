"""The real ModelScope client reads what we read, and publishes what we give it, over a loopback server.

`python -m bench.soak.hub_modelscope [--json FILE]`, also `make soak-hub_modelscope`. The client lives in a virtual
environment of its own, made from bench/peers/modelscope.txt on first use. `--quick` changes nothing.
"""

from __future__ import annotations

from bench.common import PEERS, ROOT, Row, child, main_of, parser, peer_python, read_options, table, write_report

__all__ = ["soak"]


def soak() -> list[Row]:
    """One row: how many of the comparisons failed."""
    program = [PEERS / "modelscope_client.py"]
    answer = child(peer_python("modelscope"), program, {"root": str(ROOT)}, "hub_modelscope")
    note = f"of {answer['checks']}: a model and a data set read by both, a folder published and read back"
    return [Row("comparisons with the ModelScope client that failed", answer["wrong"], "", 0, note=note)]


def main() -> int:
    chosen = read_options(parser((__doc__ or "").split("\n\n")[0]).parse_args(), ())
    rows = soak()
    print(table(rows))
    write_report(chosen.json, {}, rows)
    return 1 if any(row.passed is False for row in rows) else 0


if __name__ == "__main__":
    main_of(main)
