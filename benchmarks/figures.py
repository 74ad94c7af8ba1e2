"""What a run measures, and how much of it."""

from dataclasses import dataclass, replace


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
    """How much a run does, and what stands in the tables beside it."""

    jobs: int = 20_000
    queues: int = 1_000
    samples: int = 200
    many_jobs: int = 100_000
    line: int = 2_000  # jobs of one queue
    rests: int = 2_000  # jobs that wait for something else than this machine
    seconds: float = 10.0
    blocked: int = 0  # queues
    behind: int = 1  # jobs that wait in each of them
    done: int = 0  # jobs

    def scaled(self, divisor):
        smaller = {name: getattr(self, name) // divisor for name in ("jobs", "queues", "many_jobs", "line")}
        return replace(self, **smaller)


FULL = Size()
QUICK = Size(jobs=4_000, queues=200, samples=50, many_jobs=20_000, line=400, rests=1_000, seconds=3.0)
