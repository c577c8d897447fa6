"""The settings of a project that follows README.md and sets `REDIS_URL`."""

from __future__ import annotations

import os

REDIS_URL = os.environ["CABLE_BENCH_REDIS"]

SECRET_KEY = "a benchmark"
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1"]
USE_TZ = True
ASGI_APPLICATION = "tests.benchmarks.project.asgi.application"
ROOT_URLCONF = "tests.benchmarks.project.urls"
INSTALLED_APPS = [
    "daphne",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "channels",
    "reliable_cable",
    "tests.benchmarks.project",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ["CABLE_BENCH_DATABASE"],
        "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 10, "init_command": "PRAGMA journal_mode=WAL;"},
    }
}
# The clients of `incoming` send as fast as they can.
RELIABLE_CABLE = {"REDIS_URL": REDIS_URL, "BROADCAST_KEY": "bench", "MAX_FRAME_RATE": None}
# For stock Channels (stock.py).
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": os.environ.get("CABLE_BENCH_LAYER", "channels_redis.pubsub.RedisPubSubChannelLayer"),
        # With redis-py 8, reads time out after 5 idle seconds by default (see Channels: Channel layers).
        "CONFIG": {"hosts": [{"address": REDIS_URL, "socket_timeout": 60}]},
    }
}
