"""The interface of stream stores, and its implementations."""
