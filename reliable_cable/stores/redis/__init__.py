"""The Redis clients, the names of keys, and the Lua scripts."""
