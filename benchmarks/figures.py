"""What a run measures, and how much of it."""

from dataclasses import dataclass


@dataclass
class Figure:
    """One measured number.

    reference: the same work's lower or upper bound, from the same run.
    goal: what the figure (``goal_of="ratio"``: the ratio) must reach.
    """

    name: str
    unit: str
    value: float
    reference: float | None = None
    goal: float | None = None
    goal_of: str = "value"
    more_is_better: bool = False

    @property
    def ratio(self):
        return self.value / self.reference if self.reference else None


@dataclass
class Size:
    """How much a run does."""

    jobs: int = 20_000
    queues: int = 1_000
    samples: int = 200
    many_jobs: int = 100_000
    seconds: float = 10.0
    blocked: int = 0

    def scaled(self, divisor):
        return Size(self.jobs // divisor, self.queues // divisor, self.samples, self.many_jobs // divisor, self.seconds)


FULL = Size()
QUICK = Size(jobs=4_000, queues=200, samples=50, many_jobs=20_000, seconds=3.0)
