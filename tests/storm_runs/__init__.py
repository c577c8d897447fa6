"""The storm of runs: writers and servers are killed while readers come and go (see docs/contributing.md)."""
