"""Numbers, each with the raw operation of the same run as its baseline: ``python -m benchmarks [name ...]``."""
