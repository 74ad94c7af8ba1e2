from django.apps import AppConfig
from django.utils.module_loading import autodiscover_modules


class QueuetopiaConfig(AppConfig):
    """Imports every installed app's ``queues`` module, so that its Queuetopias are known everywhere."""

    name = "queuetopia"
    verbose_name = "Queuetopia"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self):
        from . import checks, conf  # noqa: F401 - registers the system checks

        module = conf.autodiscover()
        if module is not None:
            autodiscover_modules(module)
