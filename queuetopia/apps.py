from django.apps import AppConfig
from django.utils.module_loading import autodiscover_modules, import_string


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
        _declare_task_backends(conf.tasks())


def _declare_task_backends(backends):
    """Make the Queuetopias of Django's Tasks known, to nodes too; what else is wrong with them Django says."""
    for alias, params in backends.items():
        try:
            backend = import_string(params["BACKEND"])
        except (ImportError, KeyError, TypeError):
            continue
        if getattr(backend, "is_queuetopia", False):
            backend(alias, params)
