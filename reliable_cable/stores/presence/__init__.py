"""The interface of presence stores, and its implementations."""
