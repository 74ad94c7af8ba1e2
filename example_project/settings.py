"""The example's settings: they work as they are, on SQLite; the environment says what differs elsewhere."""

from pathlib import Path

import django
import environ

BASE_DIR = Path(__file__).parent
env = environ.Env()

DEBUG = env.bool("DEBUG", default=True)
SECRET_KEY = env.str("SECRET_KEY", default="for the example only")
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["localhost", "127.0.0.1"])

DATABASES = {"default": env.db("DATABASE_URL", default=f"sqlite:///{BASE_DIR / 'db.sqlite3'}")}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    # Several processes write: with SQLite's and Django's defaults they get "database is locked".
    DATABASES["default"]["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
    }

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "queuetopia",
    "example_project.shop",
    "example_project.provider",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "example_project.urls"
WSGI_APPLICATION = "example_project.wsgi.application"
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
STATIC_URL = "static/"
USE_TZ = True
TIME_ZONE = "UTC"

# Where the workers find the provider: this site, by an address they can reach. The demo sets it itself.
PROVIDER_URL = env.str("PROVIDER_URL", default="http://127.0.0.1:8000/provider/")

# Mails are real, but end in files.
MAIL_FOLDER = env.str("MAIL_FOLDER", default=str(BASE_DIR / "mails"))
_FILES = "django.core.mail.backends.filebased.EmailBackend"
if django.VERSION >= (6, 1):
    MAILERS = {"default": {"BACKEND": _FILES, "OPTIONS": {"file_path": MAIL_FOLDER}}}
else:
    EMAIL_BACKEND, EMAIL_FILE_PATH = _FILES, MAIL_FOLDER

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)-7s %(message)s"}},
    "filters": {
        # A provider that is switched off answers 503: no error of this site.
        "not_the_provider": {
            "()": "django.utils.log.CallbackFilter",
            "callback": lambda record: not record.request.path.startswith("/provider/"),
        }
    },
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": {
        "queuetopia": {"handlers": ["console"], "level": env.str("LOG_LEVEL", default="INFO")},
        "django.request": {"filters": ["not_the_provider"]},
    },
}

# A demo cannot wait for hours: a provider that was off is tried again after 2, 3, 3, 3 … seconds.
QUEUETOPIA = {"SCOPES": {"shop.orders": {"max_backoff": 3}}}
