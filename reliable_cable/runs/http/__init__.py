"""The HTTP endpoints of runs, which speak the protocol of `useChat` (see docs/llm.md)."""
