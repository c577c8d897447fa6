"""What things cost, measured against what they are made of: `python -m tests.benchmarks`."""
