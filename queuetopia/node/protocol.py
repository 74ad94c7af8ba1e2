"""What supervisor and scheduler agree on: options, signals, heartbeats and exit codes."""

import signal
from dataclasses import dataclass, field

# The signals that stop the scheduler. Init systems, terminals and operators send the usual signals to every process of
# a node; these are ours alone, where the system has enough signals.
_OURS = int(getattr(signal, "SIGRTMIN", 0))
STOP, STOP_AT_ONCE = (_OURS + 3, _OURS + 4) if _OURS else (signal.SIGUSR1, signal.SIGUSR2)

BEAT, LAST_BEAT = b".", b"!"  # what a scheduler writes: that it lives, that it has done everything and ends

REFUSED = 3  # the scheduler's exit code when the database cannot serve it: at the start of a node, its end
CRASHED = 70  # its exit code after an error of its own

SLICE = 20  # jobs a queue may go straight on with while others wait


@dataclass
class Options:
    """The options of ``run_queuetopia``."""

    scopes: list[str] = field(default_factory=list)  # empty: all
    processes: int = 1
    concurrency: int = 1  # attempts at once per worker process
    poll_interval: float | None = None  # seconds; None: the scopes' own
    grace: float = 30.0  # seconds that running jobs have to end on a stop
    until_empty: bool = False
    standby: bool = False
    slice: int = SLICE
    progress: bool = False
    verbosity: int = 1
    max_jobs_per_worker: int | None = None  # attempts, then it is replaced
    max_memory_per_worker: int | None = None  # resident MB after an attempt above which it is replaced

    def __post_init__(self):
        for name in ("processes", "concurrency", "slice", "max_jobs_per_worker", "max_memory_per_worker"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{name} must be a positive whole number, not {value!r}")
