"""Redis: the clients, the names of keys, and the Lua scripts (one operation a file)."""
