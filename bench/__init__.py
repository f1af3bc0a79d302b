"""Benches: speed and quality beside peers. `python -m bench.NAME [--quick] [--peers none|LIST] [--json FILE]`."""
