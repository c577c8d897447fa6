"""Reliable real-time streams for Django Channels."""

__version__ = "0.1.0"
