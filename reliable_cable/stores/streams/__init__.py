"""Stores of streams: append, read, position, subscribe."""
