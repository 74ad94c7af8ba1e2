"""Jobs and queues in Django's admin: to look at, and to decide about; nothing is added or edited here.

``lists`` keeps the lists cheap beside a million jobs, ``base`` holds what both pages share: who may do what, the
confirmation, and the record of what was done. What is done is done by the functions of ``jobs.py``.
"""

from .jobs import JobAdmin
from .queues import QueueAdmin

__all__ = ["JobAdmin", "QueueAdmin"]
