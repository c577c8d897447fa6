"""The stores of streams, presence and sessions."""
