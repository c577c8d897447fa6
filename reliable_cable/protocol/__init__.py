"""The extended Action Cable protocol, without I/O, Django or asyncio. Callers pass in the time and new ids."""
