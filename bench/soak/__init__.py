"""Long runs under load: `python -m bench.soak.NAME`, or `make soak-NAME`."""
