"""What a dropped connection needs to be resumed."""
