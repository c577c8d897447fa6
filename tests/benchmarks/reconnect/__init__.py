"""Many clients that come back at once after a restart of their server: what that costs, and how long it takes."""
