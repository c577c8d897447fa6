"""The extended Action Cable protocol, sans I/O: no Django, no asyncio; clocks and ids are handed in."""
