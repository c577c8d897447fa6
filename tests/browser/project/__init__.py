"""The demo as the browser tests serve it."""
