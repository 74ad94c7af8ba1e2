import django
import environ

from tests.admin_settings import MIDDLEWARE, TEMPLATES  # noqa: F401 - settings
from tests.database import database_config, database_url, other_database_url

env = environ.Env()

SECRET_KEY = env.str("SECRET_KEY", default="for tests only")
ALLOWED_HOSTS = ["*"]
USE_TZ = True
# Not UTC: code that mixes up the two has to fail.
TIME_ZONE = "Europe/Paris"

DATABASES = {"default": database_config(database_url()), "other": database_config(other_database_url())}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.admin",
    "django.contrib.staticfiles",
    "queuetopia",
    "tests.testapp",
]
ROOT_URLCONF = "tests.urls"
STATIC_URL = "static/"
if django.VERSION >= (6, 1):
    MAILERS = {"default": {"BACKEND": "django.core.mail.backends.locmem.EmailBackend"}}
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

# While this file exists, each write of a log record waits: a full disk, a mail server that never answers.
if gate := env.str("QUEUETOPIA_TEST_LOG_GATE", default=""):
    LOGGING = {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"gate": {"class": "tests.faults.gate.GateHandler", "path": gate}},
        "root": {"handlers": ["gate"], "level": "INFO"},
    }

# What a test wants to be different in the nodes it starts, it says in their environment.
QUEUETOPIA = {
    "LEASE": env.float("QUEUETOPIA_TEST_LEASE", default=15),
    "ENABLED": env.json("QUEUETOPIA_TEST_ENABLED", default=True),
}
