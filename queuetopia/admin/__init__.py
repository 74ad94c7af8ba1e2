"""Jobs and queues in Django's admin: to inspect, and to decide about; every change is made by a verb.

``lists`` keeps the lists cheap beside a million jobs, ``base`` holds what the pages share: who may do what, the
confirmation, and the record of what was done; ``overview`` is the page about everything. What is done is done by the
functions of ``jobs``.
"""

from .jobs import JobAdmin
from .overview import ScopeAdmin
from .queues import QueueAdmin
from .schedules import ScheduleAdmin

__all__ = ["JobAdmin", "QueueAdmin", "ScheduleAdmin", "ScopeAdmin"]
