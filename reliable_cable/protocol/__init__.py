"""The extended Action Cable protocol without I/O: no Django, no asyncio. Callers pass in the time and the ids."""
