"""Access to Django's database for all stores that use it."""
