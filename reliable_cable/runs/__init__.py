"""Runs: answers that a background task writes, for example those of a language model.

Add `reliable_cable.runs` to `INSTALLED_APPS`. See Language models.
"""
