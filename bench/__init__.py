"""Side-by-side measurements against peers: each `python -m bench.NAME` prints one table and can write one JSON."""
