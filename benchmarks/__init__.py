"""Measures runed against raw `llama-server`, in one run on one machine: `python -m benchmarks`."""
