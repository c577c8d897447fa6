"""The implementation of `manage.py cable_setup`, which adds reliable_cable to a project. It needs the extra `setup`."""
