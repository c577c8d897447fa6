"""Broadcasts through anycable-go, to which clients are connected instead of to the servers of this package."""
