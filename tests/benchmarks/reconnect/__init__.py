"""Measures the cost and the time when many clients reconnect at once: `python -m tests.benchmarks reconnect`."""
