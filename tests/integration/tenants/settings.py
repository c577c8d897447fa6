"""Settings of the project. Environment variables have the host of PostgreSQL and, if tests use Redis, its URL."""

from __future__ import annotations

import os

SECRET_KEY = "tenants"
ALLOWED_HOSTS = ["*"]
USE_TZ = True
ROOT_URLCONF = "tests.integration.tenants.urls"
SHARED_APPS = ["django_tenants", "tests.integration.tenants", "channels", "reliable_cable"]
TENANT_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"]
INSTALLED_APPS = [*SHARED_APPS, *TENANT_APPS]
MIDDLEWARE = [
    "django_tenants.middleware.main.TenantMainMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {
    "default": {
        "ENGINE": "django_tenants.postgresql_backend",
        "NAME": "postgres",
        "USER": "postgres",
        "HOST": os.environ["CABLE_TEST_POSTGRES"],
    }
}
DATABASE_ROUTERS = ["django_tenants.routers.TenantSyncRouter"]
TENANT_MODEL = "tenants.Customer"
TENANT_DOMAIN_MODEL = "tenants.Domain"
RELIABLE_CABLE = {
    "NAMESPACE": "tests.integration.tenants.documented.namespace",
    "PING_INTERVAL": 60,
    **({"REDIS_URL": os.environ["CABLE_TEST_REDIS"]} if "CABLE_TEST_REDIS" in os.environ else {}),
}
