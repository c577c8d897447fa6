"""Threads, background work, pacing, and what is run after a commit."""
