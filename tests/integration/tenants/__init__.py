"""A project with django-tenants, on PostgreSQL. The code of docs/tenants.md is a part of it."""
