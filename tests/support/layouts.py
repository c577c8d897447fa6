"""Projects with common layouts, such as those of `startproject` and Cookiecutter. Each function creates one."""

from __future__ import annotations

from pathlib import Path

from tests.support.projects import Project

MANAGE = """#!/usr/bin/env python
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "{settings}")
    from django.core.management import execute_from_command_line

    # This folder has the apps of the project.
    sys.path.insert(0, str(Path(__file__).parent.resolve() / "{apps}"))
    execute_from_command_line(sys.argv)
"""

WSGI = """import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "{settings}")
application = get_wsgi_application()
"""

MIDDLEWARE = """MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [],
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
"""

# -- a package of settings, no asgi.py, a user model with an e-mail address -------------------------------------------

PACKAGE = {
    "manage.py": MANAGE.format(settings="config.settings.local", apps="shop"),
    ".envs/.local/.django": "DJANGO_SECRET_KEY=local\nUSE_ECHO=yes\n",
    "config/__init__.py": "",
    "config/wsgi.py": WSGI.format(settings="config.settings.production"),
    "config/urls.py": """from django.conf import settings
from django.conf.urls.static import static
from django.contrib import admin
from django.urls import path
from django.views import defaults as default_views

urlpatterns = [
    # Django Admin, use {% url 'admin:index' %}
    path(settings.ADMIN_URL, admin.site.urls),
    # Media files
    *static(settings.MEDIA_URL, document_root=settings.MEDIA_ROOT),
]

if settings.DEBUG:
    urlpatterns += [
        path("404/", default_views.page_not_found, kwargs={"exception": Exception("Page not Found")}),
    ]
""",
    "config/settings/__init__.py": "",
    "config/settings/base.py": '''"""Base settings to build other settings files upon."""

from pathlib import Path

import environ

BASE_DIR = Path(__file__).resolve(strict=True).parent.parent.parent
env = environ.Env()
env.read_env(str(BASE_DIR / ".envs/.local/.django"))

DATABASES = {"default": env.db("DATABASE_URL", default=f"sqlite:///{BASE_DIR}/db.sqlite3")}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
ROOT_URLCONF = "config.urls"
# https://docs.djangoproject.com/en/dev/ref/settings/#wsgi-application
WSGI_APPLICATION = "config.wsgi.application"

# APPS
# ------------------------------------------------------------------------------
DJANGO_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.admin",
]
THIRD_PARTY_APPS: list[str] = []

LOCAL_APPS = [
    "shop.users",
    # Your stuff: custom apps go here
]
# https://docs.djangoproject.com/en/dev/ref/settings/#installed-apps
INSTALLED_APPS = DJANGO_APPS + THIRD_PARTY_APPS + LOCAL_APPS

AUTH_USER_MODEL = "users.User"
ADMIN_URL = "admin/"
STATIC_URL = "/static/"
MEDIA_URL = "/media/"
MEDIA_ROOT = str(BASE_DIR / "media")
USE_TZ = True
'''
    + MIDDLEWARE,
    "config/settings/local.py": """from .base import *  # noqa: F403
from .base import INSTALLED_APPS
from .base import env

DEBUG = True
SECRET_KEY = env("DJANGO_SECRET_KEY")
ALLOWED_HOSTS = ["localhost", "0.0.0.0", "127.0.0.1"]
INSTALLED_APPS = [*INSTALLED_APPS, "django.contrib.humanize"]
""",
    "config/settings/production.py": """from .base import *  # noqa: F403
from .base import env

SECRET_KEY = env("DJANGO_SECRET_KEY")
ALLOWED_HOSTS = env.list("DJANGO_ALLOWED_HOSTS", default=["example.com"])
""",
    "shop/__init__.py": "",
    "shop/users/__init__.py": "",
    "shop/users/models.py": """from django.contrib.auth.models import AbstractUser
from django.db.models import EmailField


class User(AbstractUser):
    username = None
    email = EmailField(unique=True)
    USERNAME_FIELD = "email"
    REQUIRED_FIELDS = []
""",
    "shop/users/migrations/__init__.py": "",
}

# -- a src folder, settings in an env file, static files with hashed names --------------------------------------------

SRC = {
    "pyproject.toml": '[project]\nname = "news"\nversion = "1"\n',
    ".env": "SECRET_KEY=secret\nDEBUG=True\nDATABASE_URL=sqlite:///db.sqlite3\n",
    "manage.py": MANAGE.format(settings="news.settings", apps="src"),
    "src/news/__init__.py": "",
    "src/news/settings.py": """from pathlib import Path

import environ

BASE_DIR = Path(__file__).resolve().parent.parent.parent
env = environ.Env(DEBUG=(bool, False))
environ.Env.read_env(BASE_DIR / ".env")
SECRET_KEY = env("SECRET_KEY")
DEBUG = env("DEBUG")
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["*"])

INSTALLED_APPS = [  # in the order of their templates
    # Django
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",  # needs STATIC_URL
    # "debug_toolbar",
]

DATABASES = {"default": env.db()}
ROOT_URLCONF = "news.urls"
WSGI_APPLICATION = "news.wsgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
STATIC_URL = "static/"
STATIC_ROOT = BASE_DIR / "static"
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"},
}
USE_TZ = True
"""
    + MIDDLEWARE,
    "src/news/urls.py": """from django.conf import settings
from django.conf.urls.static import static
from django.contrib import admin
from django.http import HttpResponse
from django.urls import path, re_path

urlpatterns = [
    path("admin/", admin.site.urls),
    re_path(r"^.*$", lambda request: HttpResponse("the single page of this site")),
] + static("/media/", document_root=settings.BASE_DIR / "media")
""",
    "src/news/wsgi.py": WSGI.format(settings="news.settings"),
    "src/news/asgi.py": WSGI.format(settings="news.settings").replace("wsgi", "asgi"),
}

# -- consumers of Channels --------------------------------------------------------------------------------------------

CHANNELS = {
    "mysite/asgi.py": """import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
# Initialize Django ASGI application early, so that the apps are loaded before models are imported.
django_asgi_app = get_asgi_application()

from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from channels.security.websocket import AllowedHostsOriginValidator  # noqa: E402

from chat.routing import websocket_urlpatterns  # noqa: E402

application = ProtocolTypeRouter(
    {
        "http": django_asgi_app,
        "websocket": AllowedHostsOriginValidator(AuthMiddlewareStack(URLRouter(websocket_urlpatterns))),
    }
)
""",
    "chat/__init__.py": "",
    "chat/consumers.py": """from channels.generic.websocket import AsyncWebsocketConsumer


class EchoConsumer(AsyncWebsocketConsumer):
    async def receive(self, text_data=None, bytes_data=None):
        await self.send(text_data=f"{self.scope['user'].pk}: {text_data}")
""",
    "chat/routing.py": """from django.urls import re_path

from . import consumers

websocket_urlpatterns = [
    re_path(r"ws/echo/$", consumers.EchoConsumer.as_asgi()),
]
""",
}


def stock(folder: Path, python: Path) -> Project:
    """Make a project with `django-admin startproject`."""
    return Project.start(folder, python)


def package(folder: Path, python: Path) -> Project:
    """Make a project with a package of settings, env files, and no asgi.py."""
    project = Project(folder, python)
    project.write(PACKAGE)
    project.manage("makemigrations", "users", "--verbosity", "0")
    return project


def src(folder: Path, python: Path) -> Project:
    """Make a project in the folder `src`, with an env file and a route that matches everything."""
    project = Project(folder, python)
    project.write(SRC)
    return project


def channels(folder: Path, python: Path) -> Project:
    """Make a project that serves a consumer of Channels with daphne."""
    project = Project.start(folder, python)
    settings = (folder / "mysite/settings.py").read_text()
    apps = "INSTALLED_APPS = [\n    'daphne',\n    'channels',\n    'chat',"
    project.write(CHANNELS)
    project.write(
        {
            "mysite/settings.py": settings.replace("INSTALLED_APPS = [", apps)
            + "ASGI_APPLICATION = 'mysite.asgi.application'\n"
        }
    )
    return project
