"""The implementation of `manage.py cable_setup`, which adds this package to a project. It needs the extra `setup`."""
