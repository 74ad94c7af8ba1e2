"""What log records say of a job besides their text, for logs that machines read."""

import logging
from typing import Any

from . import attempts
from .attempts import Claim
from .text import visible


def fields(claim: Claim, kind: str, node: str = "") -> dict[str, Any]:
    """Return the ``extra`` of a record about the attempt of a claim; ``kind`` says what happened, in constant words."""
    return {
        "kind": kind,
        "scope": claim.scope,
        "queue": visible(claim.queue),
        "job": claim.job_id,
        "action": visible(claim.action),
        "attempt": claim.attempt,
        "fence": claim.fence,
        **({"node": node} if node else {}),
    }


def current_job() -> Any:
    """Return the job of the attempt that runs here, as its performer was handed it; None outside of attempts.

    Threads that the performer begins do not know it.
    """
    return attempts.current_job.get()


class JobFilter(logging.Filter):
    """Adds scope, queue, job, action, attempt and fence to the records that a performer's code makes in an attempt.

    To be named in ``LOGGING["filters"]`` and by handlers. It lets every record pass.
    """

    def filter(self, record):
        job = current_job()
        if job is not None and job._claim is not None and not hasattr(record, "job"):
            own = fields(job._claim, "")
            del own["kind"]
            record.__dict__.update(own)
        return True
