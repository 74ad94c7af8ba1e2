"""A progress bar on standard error, for ``--until-empty`` on a terminal."""

import sys

from .models import Job

WIDTH = 30


class Progress:
    def __init__(self, stores, stream=None):
        self._stores, self._stream = stores, stream or sys.stderr
        self._ended = 0
        self._total: int | None = None

    def begin(self) -> None:
        """Count what waits; the sessions are open."""
        self._total = sum(self._unfinished(store) for store in self._stores)
        self._draw()

    def advance(self, ended: int) -> None:
        if ended:
            self._ended += ended
            self._draw()

    def end(self) -> None:
        self._draw()
        self._stream.write("\n")

    def _unfinished(self, store):
        return Job.objects.using(store.alias).unfinished().filter(scope__in=store.scopes).count()

    def _draw(self):
        total = max(self._total or 0, self._ended)  # jobs created meanwhile count as they end
        done = WIDTH if not total else WIDTH * self._ended // total
        self._stream.write(f"\r[{'#' * done}{'.' * (WIDTH - done)}] {self._ended}/{total} jobs")
        self._stream.flush()
