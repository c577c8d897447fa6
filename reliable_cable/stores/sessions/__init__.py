"""The interface of session stores, and its implementations."""
