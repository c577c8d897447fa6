"""What all stores in Django's database share."""
