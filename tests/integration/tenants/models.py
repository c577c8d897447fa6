"""The tenants and their host names."""

from __future__ import annotations

from django_tenants.models import DomainMixin, TenantMixin


class Customer(TenantMixin):  # type: ignore[misc]  # django-tenants is untyped
    """A tenant."""

    auto_create_schema = True


class Domain(DomainMixin):  # type: ignore[misc]
    """A host name of a tenant."""
