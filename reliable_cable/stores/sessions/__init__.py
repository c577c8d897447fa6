"""Stores of session records, which a restore needs."""
