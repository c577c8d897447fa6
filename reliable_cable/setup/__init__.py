"""Adds reliable_cable to a Django project: `manage.py cable_setup`. Needs the extra `setup`."""
