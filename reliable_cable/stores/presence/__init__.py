"""Stores of presence: join, leave, refresh, expire."""
