"""Logging that never blocks the loop of a supervisor or scheduler.

A mail server that does not answer, a full pipe or a file on a dead file system can block a log handler for minutes.
The process that keeps the lease, or that kills the other one, must not wait for that: it puts records into a bounded
queue, and a thread passes them to the handlers. Records that find the queue full are counted and dropped.
"""

import atexit
import contextlib
import logging
import os
import queue
import threading
from functools import partial

MOST_RECORDS = 10_000
LAST_WAIT = 2.0  # seconds that the end of the process waits for the handlers

logger = logging.getLogger(__name__)


class _Forward(logging.Handler):
    """Stands where a logger's own handlers stood."""

    def __init__(self, log_queue: "LogQueue", handlers: list[logging.Handler]):
        super().__init__(min(handler.level for handler in handlers))
        self.handlers, self._log_queue = handlers, log_queue

    def handle(self, record):  # without the lock, which another thread might hold
        self._log_queue.put(partial(self._pass_on, record))
        return True

    def _pass_on(self, record):
        if not self._log_queue.passes_filters(record):
            return
        for handler in self.handlers:
            if record.levelno >= handler.level:
                handler.handle(record)


class Stream:
    """A text stream whose writer never waits."""

    def __init__(self, log_queue: "LogQueue", stream):
        self._log_queue, self._stream = log_queue, stream

    def write(self, text: str) -> None:
        self._log_queue.put(partial(self._write, text))

    def flush(self) -> None:
        """Do nothing: each write is flushed."""

    def _write(self, text):
        self._stream.write(text)
        self._stream.flush()


class LogQueue:
    """Moves all configured log handlers of this process behind a queue until ``close``."""

    def __init__(self):
        self._queue: queue.Queue = queue.Queue(MOST_RECORDS)
        self._dropped = 0
        self._moved: list[tuple[logging.Logger, _Forward]] = []
        self._filters: dict[str, list] = {}  # by logger
        self._last_resort = logging.lastResort
        self._ended = threading.Event()
        for log in (logging.getLogger(), *list(logging.Logger.manager.loggerDict.values())):
            if isinstance(log, logging.Logger) and log.filters:
                self._filters[log.name], log.filters = log.filters, []
            if isinstance(log, logging.Logger) and log.handlers:
                forward = _Forward(self, log.handlers)
                log.handlers = [forward]
                self._moved.append((log, forward))
        if self._last_resort is not None:
            logging.lastResort = _Forward(self, [self._last_resort])
        threading.Thread(target=self._work, name="queuetopia-log", daemon=True).start()

    def put(self, write) -> None:
        """Have the thread call ``write``; drop it if the queue is full."""
        try:
            self._queue.put_nowait(write)
        except queue.Full:
            self._dropped += 1

    def passes_filters(self, record) -> bool:
        """Ask the filters of the record's logger, which are the project's code, once for all handlers."""
        if not hasattr(record, "_passes_filters"):
            filterer = logging.Filterer()
            filterer.filters = self._filters.get(record.name, [])
            record._passes_filters = True
            with contextlib.suppress(Exception):  # a record is not lost to a filter that fails
                record._passes_filters = bool(filterer.filter(record))
        return record._passes_filters

    def stream(self, stream) -> Stream:
        return Stream(self, stream)

    def _work(self):
        while (write := self._queue.get()) is not None:
            with contextlib.suppress(Exception):  # a handler that fails has nowhere to report it
                write()
            if self._dropped and self._queue.qsize() < MOST_RECORDS / 2:
                dropped, self._dropped = self._dropped, 0
                logger.warning("log records dropped n=%d; a log handler blocks or is too slow", dropped)
        self._ended.set()

    def close(self) -> bool:
        """Restore the handlers; return False if they have not taken all records within ``LAST_WAIT``."""
        for log, forward in self._moved:
            # A handler that was added meanwhile stays.
            log.handlers = [*forward.handlers, *(handler for handler in log.handlers if handler is not forward)]
        for name, filters in self._filters.items():
            log = logging.getLogger(None if name == "root" else name)
            log.filters = [*filters, *log.filters]
        logging.lastResort = self._last_resort
        try:
            self._queue.put(None, timeout=LAST_WAIT)
        except queue.Full:
            return False
        return self._ended.wait(LAST_WAIT)


def leave_at_exit(code: int) -> None:
    """End this process at its exit without waiting for a log handler that blocks, which holds its own lock."""
    atexit.register(os._exit, code)
