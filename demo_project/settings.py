"""Settings of the demo. The environment may override: DEBUG, DEMO_DATABASE, DEMO_HOSTS, DEMO_TOKEN_DELAY."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

BASE_DIR = Path(__file__).resolve().parent

SECRET_KEY = "a demo needs no secret; your project does"  # noqa: S105
DEBUG = os.environ.get("DEBUG", "1") != "0"
ALLOWED_HOSTS = ["localhost", "127.0.0.1", "[::1]", *filter(None, os.environ.get("DEMO_HOSTS", "").split(","))]

INSTALLED_APPS = [
    "daphne",  # first: its runserver serves ASGI
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "channels",
    "reliable_cable",
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

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("DEMO_DATABASE", str(BASE_DIR / "db.sqlite3")),
        # A writer takes its lock at once and waits for it; readers and the writer do not wait for each other.
        "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 20, "init_command": "PRAGMA journal_mode=WAL;"},
        # Tests need a file too: a database in memory is another one for each thread.
        "TEST": {"NAME": os.environ.get("DEMO_DATABASE", str(BASE_DIR / "db")) + ".test.sqlite3"},
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

RELIABLE_CABLE: dict[str, Any] = {
    "STREAMS": {
        "ChatChannel:*": {"history_size": 1000, "history_ttl": 86400},
        "assistant:*": {"history_size": 2000, "history_ttl": 3600},
    },
    # For the page "Coming from Action Cable", which shows a public stream too.
    "PUBLIC_STREAMS": True,
}

#: What answers in the assistant: the dotted path of a `demo_project.chat.generators.Generator`.
DEMO_GENERATOR = "demo_project.chat.generators.ScriptedGenerator"
#: Seconds between two of its tokens.
DEMO_TOKEN_DELAY = float(os.environ.get("DEMO_TOKEN_DELAY", "0.04"))

LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "rooms"
LOGOUT_REDIRECT_URL = "login"

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True
STATIC_URL = "/static/"
