"""What must hold when everything is done: read from the ledger and the tables, which know nothing of each other."""

from collections import Counter, defaultdict

from .ledger import SIGNS, check, set_aside_late, takeovers

BOOKS = "book_at_random"
BOOKED = "booked "


class Verdict:
    """Figures of a campaign, and sentences of what must never be."""

    def __init__(self, campaign):
        everything = campaign.ledger.records()
        signs = [record for record in everything if record.event in SIGNS]
        records, self.late = set_aside_late(signs, campaign.thaws)
        jobs = _jobs()
        findings = check(records, _lines(jobs))
        self.jobs, self.booked = len(jobs), sum(job["action"] == BOOKS for job in jobs)
        self.attempts = sum(record.event == "start" for record in signs)
        self.repeated = findings.duplicates
        self.locks = sum(record.event == "locked" for record in everything)
        self.wrong = [*campaign.wrong, *findings.wrong, *_unlike(jobs, signs), *_half(jobs, everything)]
        self.wrong += [*_not_once(jobs), *_left_over()]
        # Until each node has a session again, and new workers.
        outages = [(since, until + campaign.lease) for since, until in campaign.outages]
        self.takeovers = _longest_by_kind(takeovers(records), campaign.injected, outages)
        self.stall, self.outage_stall = _stalls(everything, outages)


def _jobs() -> list[dict]:
    from queuetopia.models import Job

    jobs = Job.objects.in_order().values("id", "scope", "queue", "action", "params", "state", "result", "done_at")
    return [{**job, "number": job["params"]["seq"]} for job in jobs]


def _lines(jobs):
    """Return the numbers of each queue's jobs in the order in which they have to run."""
    lines = defaultdict(list)
    for job in jobs:
        lines[job["queue"]].append(job["number"])
    return dict(lines)


def _unlike(jobs, signs):
    """Yield where the stored results are not what the ledger says: each is that of the job's last attempt."""
    fences = defaultdict(set)
    ended = {(record.queue, record.number, record.fence) for record in signs if record.event == "end"}
    for record in signs:
        fences[record.queue, record.number].add(record.fence)
    for job in jobs:
        key = job["queue"], job["number"]
        if job["state"] != "done" or job["done_at"] is None:
            yield f"{key}: is {job['state']}"
        elif job["scope"] == "tests.ledger" and (*key, job["result"]) not in ended:
            yield f"{key}: its result is that of attempt {job['result']}, which never ended"
        elif job["scope"] == "tests.ledger" and job["result"] != max(fences[key]):
            yield f"{key}: attempt {max(fences[key])} ran after the result of attempt {job['result']} was stored"


def _half(jobs, everything):
    """Yield jobs without what was committed with them, and the other way round; and what was confirmed and is gone."""
    from tests.testapp.models import Note

    stored = Counter(f"{job['queue']} {job['number']}" for job in jobs if job["scope"] == "tests.ledger")
    notes = Counter(Note.objects.exclude(text__startswith=BOOKED).values_list("text", flat=True))
    confirmed = {f"{record.queue} {record.number}" for record in everything if record.event == "created"}
    yield from (f"{key}: half of a transaction is stored" for key in (stored - notes) + (notes - stored))
    yield from (f"{key}: was committed and is gone" for key in confirmed - stored.keys())


def _not_once(jobs):
    """Yield jobs whose own writes, in one transaction with their success, are not there exactly once."""
    from tests.testapp.models import Note

    expected = Counter(f"{BOOKED}{job['queue']} {job['number']}" for job in jobs if job["action"] == BOOKS)
    notes = Counter(Note.objects.filter(text__startswith=BOOKED).values_list("text", flat=True))
    yield from (f"{key}: was written {notes[key]} times" for key in expected | notes if notes[key] != expected[key])


def _left_over():
    """Yield what no node may leave behind: its row, a queue that it holds, a lock."""
    from queuetopia import conf
    from queuetopia.backends import backend_for
    from queuetopia.models import Node, Queue

    yield from (f"left: {node} of {node.host}" for node in Node.objects.all())
    queues = Queue.objects.exclude(held_by=None, current_job=None)
    yield from (f"left: queue {queue.name} is held by {queue.held_by}, job {queue.current_job}" for queue in queues)
    backend = backend_for("default")
    backend.open_session(conf.lease())
    try:
        ids = list(Queue.objects.values_list("id", flat=True))
        yield from (f"left: the lock of queue {queue}" for queue in set(ids) - set(backend.try_lock(ids)))
    finally:
        backend.close_session()


def _longest_by_kind(found, injected, outages):
    """Return the longest takeover by the kind of the fault that hit the attempt's process last."""
    longest = {}
    for takeover in found:
        began, until = takeover.last.clock, takeover.last.clock + takeover.seconds
        hits = [fault for fault in injected if takeover.last.pid in fault.pids and fault.clock <= until]
        kind = hits[-1].kind if hits else "none"
        if any(began < end and until > since for since, end in outages):
            kind = "database out of order"
        longest[kind] = max(longest.get(kind, takeover), takeover, key=lambda takeover: takeover.seconds)
    return longest


def _stalls(everything, outages):
    """Return how long a healthy queue's job waited at most: while the database served all, and while not."""
    asked = {(record.queue, record.number): record.clock for record in everything if record.event == "asked"}
    longest = {False: 0.0, True: 0.0}
    for record in everything:
        if record.event == "start" and (record.queue, record.number) in asked:
            began = asked.pop((record.queue, record.number))
            in_outage = any(began < until and record.clock > since for since, until in outages)
            longest[in_outage] = max(longest[in_outage], record.clock - began)
    return longest[False], longest[True]
