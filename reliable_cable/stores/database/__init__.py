"""Access to Django's database for all stores in it."""
