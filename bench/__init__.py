"""Benchmarks, each a module run as ``python -m bench.NAME`` (bench/README.md)."""
