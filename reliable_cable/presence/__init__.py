"""Who is there, by stream."""
