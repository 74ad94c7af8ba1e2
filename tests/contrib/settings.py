"""Settings of nodes that run Django's tasks."""

from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "tests.contrib"]
TASKS = {
    "default": {
        "BACKEND": "queuetopia.contrib.django_tasks.QueuetopiaBackend",
        "OPTIONS": {"max_backoff": 0.1, "max_attempts": 5},
    }
}
