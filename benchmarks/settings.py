import json
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
    from tests.admin_settings import MIDDLEWARE, TEMPLATES  # noqa: F401 - settings

    ROOT_URLCONF = "benchmarks.urls"
    STATIC_URL = "static/"
QUEUETOPIA = {"SCOPES": {"benchmarks.BenchmarkQueue": json.loads(os.environ.get("BENCHMARK_OPTIONS", "{}"))}}
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "loggers": {"queuetopia": {"handlers": ["console"], "level": "WARNING"}},
}
