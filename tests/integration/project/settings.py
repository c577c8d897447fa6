"""Settings of the project. Environment variables select the database and settings of RELIABLE_CABLE."""

from __future__ import annotations

import json
import os
from typing import Any

SECRET_KEY = "servers under test"
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1"]
USE_TZ = True
ROOT_URLCONF = "tests.integration.project.urls"
ASGI_APPLICATION = "tests.integration.project.asgi.application"
INSTALLED_APPS = [
    *json.loads(os.environ.get("CABLE_TEST_SERVER_APPS", '["daphne"]')),
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "channels",
    "reliable_cable",
    "reliable_cable.runs",
    "tests.integration.project",
    *json.loads(os.environ.get("CABLE_TEST_APPS", "[]")),
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "reliable_cable.middleware.SocketIdMiddleware",
]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
# A fast hasher, because passwords of test users need no protection.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
# The defaults of `startproject`, so that tests show that SQLite needs no options.
DATABASES: dict[str, dict[str, Any]] = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ["CABLE_TEST_DATABASE"],
        **json.loads(os.environ.get("CABLE_TEST_SQLITE", "{}")),
    }
}
if "CABLE_TEST_POSTGRES" in os.environ:
    DATABASES["default"] = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "postgres",
        "USER": "postgres",
        "HOST": os.environ["CABLE_TEST_POSTGRES"],
        "PORT": os.environ.get("CABLE_TEST_POSTGRES_PORT", ""),
        "CONN_MAX_AGE": 60,
        "CONN_HEALTH_CHECKS": "CABLE_TEST_HEALTH_CHECKS" in os.environ,
    }
if "CABLE_TEST_DIRECT_POSTGRES" in os.environ:
    # The other database is a connection pooler in transaction mode. This one is PostgreSQL itself.
    DATABASES["direct"] = {**DATABASES["default"], "HOST": os.environ["CABLE_TEST_DIRECT_POSTGRES"], "PORT": ""}
    DATABASES["default"]["DISABLE_SERVER_SIDE_CURSORS"] = True
# The app of runs cannot be used with a broadcast adapter. The tests with an adapter start no runs.
SILENCED_SYSTEM_CHECKS = ["reliable_cable.E008"]
RELIABLE_CABLE = {
    "SECRET": "a secret that tests can sign with",
    "STREAMS": {
        "small:*": {"history_size": 5},
        "brief:*": {"history_ttl": 0.3},
        "large:*": {"history_size": 5000},
        "cursor:*": {"history_size": 0},
    },
    **json.loads(os.environ.get("RELIABLE_CABLE", "{}")),
}
CHANNEL_LAYERS = json.loads(os.environ.get("CABLE_TEST_CHANNEL_LAYERS", "{}"))
CELERY_BROKER_URL = os.environ.get("CABLE_TEST_BROKER", "")
CELERY_TASK_DEFAULT_QUEUE = os.environ.get("CABLE_TEST_QUEUE", "celery")
CELERY_TASK_IGNORE_RESULT = True
# Where Celery stores the results of tasks that return one.
CELERY_RESULT_BACKEND = os.environ.get("CABLE_TEST_RESULTS") or None
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
TASKS = {
    "default": {
        "BACKEND": os.environ.get("CABLE_TEST_TASKS", "django.tasks.backends.immediate.ImmediateBackend"),
    }
}
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "loggers": {"reliable_cable": {"handlers": ["console"], "level": "INFO"}},
}
