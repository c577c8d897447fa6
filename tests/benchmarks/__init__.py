"""Measures what the package costs, in comparison to the least that is possible: `python -m tests.benchmarks`."""
