"""The HTTP endpoints of runs, which speak the protocols of `useChat` and of AG-UI (see docs/llm.md)."""
