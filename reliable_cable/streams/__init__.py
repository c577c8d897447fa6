"""The stream store: append, read, position, subscribe."""
