"""Threads for sync code, background work, pacing, transaction hooks and the detection of outages."""
