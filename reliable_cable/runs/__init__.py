"""Runs. A run is an answer that a background task writes, for example with a language model (see docs/llm.md).

Add `reliable_cable.runs` to `INSTALLED_APPS` to use them.
"""
