"""The demo with changes for the browser tests."""
