"""The Redis client of the stores, its pub/sub connection, the names of keys, and the Lua scripts."""
