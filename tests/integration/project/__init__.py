"""A small Django project that the servers under test serve."""
