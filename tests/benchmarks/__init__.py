"""Measures what the package costs, compared with code that does only the minimum: `python -m tests.benchmarks`."""
