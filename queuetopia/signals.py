"""What happens to jobs, as Django signals. Receivers run after the commit; one that raises is logged.

The sender is the Queuetopia class. ``job_created`` and what an operator's verb does (``job_done``,
``job_skipped``, ``job_cancelled``, ``queue_unblocked``) are sent where the caller is; everything
else in a worker process.
``waiting`` is how many due jobs wait in the queue; it is counted up to 1,000, 1,001 means more.

===================  =================================================================================
job_created          job
job_started          job (sent before the performer runs)
job_done             job
job_failed           job, exc: after each failed attempt, the last one included
job_halted           job, exc: the job holds its queue until an operator decides, or has moved to another (job.queue)
job_skipped          job, exc: given up by on_exhausted or Skip; by an operator: exc is None
job_cancelled        job
queue_blocked        job, queue, exc, waiting: the head failed or halted; nothing else of the queue runs
queue_still_blocked  job, queue, duration, threshold, waiting: the queue has been blocked for ``duration`` seconds,
                     more than ``threshold``, one of ALERT_AFTER. Each threshold is sent once, by one node;
                     of several that have passed, say while no node ran, the longest
queue_unblocked      job, queue, duration, waiting: the job that blocked the queue for ``duration`` seconds
                     has ended
breaker_opened       job, exc: the attempt of this job was the last of so many that failed in a row, as the class's
                     ``breaker`` says; such failures are not counted until it is closed
breaker_closed       job, since: after this one's success all jobs run as before; since: when it was opened, None after
                     ``retry_all(gently=True)``
===================  =================================================================================
"""

from django.dispatch import Signal

job_created = Signal(use_caching=True)
job_started = Signal(use_caching=True)
job_done = Signal(use_caching=True)
job_failed = Signal(use_caching=True)
job_halted = Signal(use_caching=True)
job_skipped = Signal(use_caching=True)
job_cancelled = Signal(use_caching=True)
queue_blocked = Signal(use_caching=True)
queue_still_blocked = Signal(use_caching=True)
queue_unblocked = Signal(use_caching=True)
breaker_opened = Signal(use_caching=True)
breaker_closed = Signal(use_caching=True)
