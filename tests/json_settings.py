"""Settings of nodes that write their log as JSON, by the library that the environment names."""

import os

import structlog

from tests.settings import *  # noqa: F403

FORMATTERS = {
    "python-json-logger": {"()": "pythonjsonlogger.json.JsonFormatter"},
    "structlog": {
        "()": structlog.stdlib.ProcessorFormatter,
        "foreign_pre_chain": [structlog.stdlib.ExtraAdder()],
        "processors": [
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.JSONRenderer(),
        ],
    },
}
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": FORMATTERS[os.environ["QUEUETOPIA_TEST_JSON"]]},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
    "root": {"handlers": ["stderr"], "level": "INFO"},
}
