"""Measures CPU per delivery and memory per connection: `python -m tests.benchmarks fanout`."""
