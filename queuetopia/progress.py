"""Progress bars on standard error: for ``--until-empty``, and for decisions about many jobs, on a terminal."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from .models import Job

WIDTH = 30


class Bar:
    """One line that grows: ``[####......] 4/10 jobs``; ``4 jobs`` where the total is unknown (None)."""

    def __init__(self, total: int | None = None, unit: str = "jobs", stream=None):
        self._total, self._unit, self._stream = total, unit, stream or sys.stderr
        self._done = 0

    def advance(self, count: int = 1) -> None:
        if count:
            self._done += count
            self._draw()

    def end(self) -> None:
        self._draw()
        self._stream.write("\n")

    def _draw(self):
        if self._total is None:
            self._stream.write(f"\r{self._done} {self._unit}")
            self._stream.flush()
            return
        total = max(self._total, self._done)  # what has come meanwhile counts as it is done
        done = WIDTH if not total else WIDTH * self._done // total
        self._stream.write(f"\r[{'#' * done}{'.' * (WIDTH - done)}] {self._done}/{total} {self._unit}")
        self._stream.flush()


def counted(items: Iterable[Any], bar: Bar) -> Iterator[Any]:
    """Yield the items, and let the bar advance by each."""
    try:
        for item in items:
            yield item
            bar.advance()
    finally:
        bar.end()


class Progress(Bar):
    """The jobs of a node's scopes, from what waits when it begins."""

    def __init__(self, stores, stream=None):
        super().__init__(0, stream=stream)
        self._stores = stores

    def begin(self) -> None:
        """Count what waits; the sessions are open."""
        self._total = sum(self._unfinished(store) for store in self._stores)
        self._draw()

    def _unfinished(self, store):
        return Job.objects.using(store.alias).unfinished().filter(scope__in=store.scopes).count()
