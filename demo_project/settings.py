"""Settings of the demo. By default, it runs for one developer, with SQLite and without other services.

These environment variables change the settings:

| variable | meaning |
|---|---|
| `DEBUG` | `0` turns debugging off; `SECRET_KEY` is then required, and `DEMO_PASSWORD` for `manage.py demo` |
| `DEMO_PASSWORD` | the password of the demo's users; default if debugging is on: `reliable` |
| `ALLOWED_HOSTS`, `CSRF_TRUSTED_ORIGINS` | additional values, separated by commas |
| `DATABASE_URL` | `postgres://user:password@host:port/name`; default: SQLite |
| `DEMO_DATABASE` | the path of the SQLite file |
| `REDIS_URL` | the Redis server that stores streams, presence and sessions; default: the database stores them |
| `ANYCABLE_SECRET` | the secret of anycable-go; if set, anycable-go serves the WebSockets, and the site has one page |
| `CELERY_BROKER_URL` | the broker of a Celery worker that writes the answers; default: the server writes them |
| `STATIC_ROOT` | the folder where `collectstatic` puts the static files for nginx |
| `DEMO_TOKEN_DELAY` | how long, in seconds, the assistant waits between two words |
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

BASE_DIR = Path(__file__).resolve().parent


def listed(name: str) -> list[str]:
    """Return the comma-separated values of an environment variable."""
    return [part for part in os.environ.get(name, "").split(",") if part]


DEBUG = os.environ.get("DEBUG", "1") != "0"
SECRET_KEY = "a demo needs no secret; your project does" if DEBUG else os.environ["SECRET_KEY"]
ALLOWED_HOSTS = ["localhost", "127.0.0.1", "[::1]", *listed("ALLOWED_HOSTS")]
CSRF_TRUSTED_ORIGINS = listed("CSRF_TRUSTED_ORIGINS")
if not DEBUG:
    # demo_project/deploy/nginx.conf always sets this header, so that clients cannot forge it.
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")

INSTALLED_APPS = [
    "daphne",  # daphne comes first, so that its `runserver` is used, which serves ASGI
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "channels",
    "reliable_cable",
    "reliable_cable.runs",
    "demo_project.chat",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "demo_project.middleware.ContentSecurityPolicyMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "demo_project.urls"
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "rooms"
LOGOUT_REDIRECT_URL = "login"
ASGI_APPLICATION = "demo_project.asgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    }
]

DATABASES: dict[str, dict[str, Any]] = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("DEMO_DATABASE", str(BASE_DIR / "db.sqlite3")),
        # With IMMEDIATE, a transaction waits for the write lock when it begins, instead of failing at its first write.
        # With WAL, readers and the writer do not wait for each other.
        "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 20, "init_command": "PRAGMA journal_mode=WAL;"},
        # Tests use a file, because with a database in memory, each thread would have its own database.
        "TEST": {"NAME": os.environ.get("DEMO_DATABASE", str(BASE_DIR / "db")) + ".test.sqlite3"},
    }
}
if url := os.environ.get("DATABASE_URL"):
    parts = urlsplit(url)
    DATABASES["default"] = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.path.removeprefix("/"),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": unquote(parts.hostname or ""),  # an encoded path is the directory of a Unix socket
        "PORT": parts.port or "",
        "CONN_MAX_AGE": 60,
        "CONN_HEALTH_CHECKS": True,
    }
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

RELIABLE_CABLE: dict[str, Any] = {
    "STREAMS": {
        "ChatChannel:*": {"history_size": 1000, "history_ttl": 86400},
        "chat.room:*": {"history_size": 1000, "history_ttl": 86400},
        "assistant:*": {"history_size": 100, "history_ttl": 86400},
    },
    # The page "Coming from Action Cable" has an example of a public stream.
    "PUBLIC_STREAMS": ["news:*"],
}
if url := os.environ.get("REDIS_URL"):
    RELIABLE_CABLE["REDIS_URL"] = url
if secret := os.environ.get("ANYCABLE_SECRET"):
    RELIABLE_CABLE |= {
        "SECRET": secret,
        "RPC_CONSUMER": "demo_project.chat.consumers.AppConsumer",
        "BROADCAST_ADAPTER": "redisx",
        # anycable-go has one size and time for the histories of all streams.
        "STREAMS": {},
        # anycable-go has no list of public streams, so it serves none.
        "PUBLIC_STREAMS": [],
    }
    ROOT_URLCONF = "demo_project.urls_anycable"
    LOGIN_REDIRECT_URL = "migrations"
    # Runs, and the channels of the rooms and the assistant, cannot be used behind anycable-go. No page uses them there.
    SILENCED_SYSTEM_CHECKS = ["reliable_cable.E008", "reliable_cable.W012"]

CELERY_BROKER_URL = os.environ.get("CELERY_BROKER_URL")
CELERY_TASK_IGNORE_RESULT = True
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True

#: Whether visitors may log in as any user. If so, the login page shows the password, and alice is a superuser.
DEMO_OPEN_ACCOUNTS = DEBUG
#: The password of the demo's users. If debugging is off, there is no default, because everybody would know it.
DEMO_PASSWORD = os.environ.get("DEMO_PASSWORD", "reliable" if DEBUG else "")

#: How long, in seconds, the assistant waits between two words.
DEMO_TOKEN_DELAY = float(os.environ.get("DEMO_TOKEN_DELAY", "0.04"))


LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True
STATIC_URL = "/static/"
STATIC_ROOT = os.environ.get("STATIC_ROOT", str(BASE_DIR / "deploy" / "run" / "static"))
