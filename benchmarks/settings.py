import os
import sys

import environ

from tests.database import database_config

env = environ.Env()

SECRET_KEY = "for benchmarks only"  # noqa: S105
USE_TZ = True
DATABASES = {"default": database_config(env.str("DATABASE_URL"))}
# Where each run's own database is made.
DATABASES["default"].setdefault("TEST", {}).setdefault("NAME", f"queuetopia_benchmark_{os.getpid()}")
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["queuetopia", "benchmarks"]
if sys.argv[1:2] == ["admin"]:  # of benchmarks.run: the other workloads measure a project without it
    INSTALLED_APPS += [f"django.contrib.{name}" for name in ("admin", "auth", "contenttypes", "messages", "sessions")]
    MIDDLEWARE = [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ]
    TEMPLATES = [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ]
            },
        }
    ]
    ROOT_URLCONF = "tests.urls"
    STATIC_URL = "static/"
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "loggers": {"queuetopia": {"handlers": ["console"], "level": "WARNING"}},
}
