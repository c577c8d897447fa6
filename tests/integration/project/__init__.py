"""A small Django project for tests with real servers."""
