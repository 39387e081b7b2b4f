"""Measurements of runed against raw `llama-server`, both in one run on one machine: `python -m benchmarks`."""
