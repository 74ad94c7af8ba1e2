"""The rules of a queue as a model of a few lines, and everything people, nodes and clocks do to it, in any order.

Hypothesis makes up interleavings; after each step the tables have to say what the model says. Time is a clock of
the test's own, an hour ahead of the database's, so that whatever a person's verb makes due "now" is due.

``QUEUETOPIA_RULES_EXAMPLES=5000 python -m pytest -n 0 tests/backends/test_rules.py`` looks for longer.
"""

import contextlib
import json
import os
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pytest
from django.db import transaction
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from queuetopia import jobs
from queuetopia.attempts import ENDINGS, MEANING, Claim, Verdict, describe
from queuetopia.backends import backend_for, nodes, upkeep
from queuetopia.backends.contract.toolkit import HOUR, SECOND, Node, claim, end, record
from queuetopia.exceptions import NodeDied, Refused
from queuetopia.jobs import deciding
from queuetopia.models import Job, JobEvent, Queue, Scope
from queuetopia.models import Node as NodeRow
from tests.testapp.queues import LedgerQueue, SlowRetryQueue

EXAMPLES = int(os.environ.get("QUEUETOPIA_RULES_EXAMPLES", "30"))
STEPS = 40
CLASSES = {queuetopia.scope: queuetopia for queuetopia in (LedgerQueue, SlowRetryQueue)}
NAMES = ("a", "A")
LINES = [(scope, name) for scope in CLASSES for name in NAMES]

lines = st.sampled_from(LINES)
scopes = st.sampled_from([*CLASSES])
# Not of other queues, nor of outages: the contract has those.
verdicts = st.sampled_from(sorted(set(Verdict) - {Verdict.MOVE, Verdict.OUTAGE}))
delays = st.sampled_from([0.0, 0.5, 2.0, 10.0, 3600.0])
times = st.one_of(st.none(), st.sampled_from([-3600, -5, 0, 1, 5, 30, 3600]))
options = st.fixed_dictionaries(
    {},
    optional={
        "max_attempts": st.integers(1, 3),
        "max_backoff": st.sampled_from([0, 3, 60]),
        "on_exhausted": st.sampled_from(["halt", "skip", "retry"]),
    },
)


@dataclass
class Line:
    """What the rules say of one queue."""

    paused: bool = False
    fence: int = 0
    running: Claim | None = None
    holder: uuid.UUID | None = None
    stop_requested: bool = False
    # Until when its head may be left alone though it is due: a job was given back for later.
    not_before: datetime | None = None
    has_problem: bool = False
    memory: list[int] | None = None  # the jobs that were done, as each has added itself
    asleep: bool = False  # a wake-up was lost: only a sweep, or the next wake-up, has to find its jobs


@dataclass
class Model:
    now: datetime
    jobs: dict[int, Job] = field(default_factory=dict)  # as they should be stored
    lines: dict[tuple[str, str], Line] = field(default_factory=lambda: {line: Line() for line in LINES})
    paused: set[str] = field(default_factory=set)  # scopes

    def unfinished(self, line):
        mine = [job for job in self.jobs.values() if (job.scope, job.queue) == line and job.done_at is None]
        return sorted(mine, key=lambda job: (job.scheduled_at, job.pk))

    def head(self, line):
        """An attempted job is the head until it ends; else the first in line."""
        waiting = self.unfinished(line)
        return next((job for job in waiting if job.attempted_at is not None), waiting[0] if waiting else None)

    def due_at(self, line):
        """When the head may run; None: never by itself."""
        head = self.head(line)
        if head is None or head.state == "halted":
            return None
        return head.next_attempt_at or (head.scheduled_at if head.attempted_at is None else self.now)

    def is_served(self, line):
        """Whether a node may start the queue's head now."""
        state, due_at = self.lines[line], self.due_at(line)
        is_free = state.running is None and not state.paused and line[0] not in self.paused
        return is_free and due_at is not None and due_at <= self.now


class Rules(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        for table in (Job, Queue, Scope, JobEvent, NodeRow):
            table.objects.all().delete()
        self.backend = backend_for("default")
        self.model = Model(self.backend.now() + HOUR)
        self.nodes = [self.new_node(), self.new_node()]
        self.dead: list[uuid.UUID] = []
        self.stale: list[Claim] = []  # claims of dead nodes, taken over since

    def new_node(self):
        node = Node(uuid.uuid4())
        node.run(nodes.register, node.backend, node.id, "somewhere", 1, [*CLASSES])
        node.run(upkeep.forget_problems, node.backend, [*CLASSES])
        return node

    def teardown(self):
        for node in self.nodes:
            node.close()

    @property
    def now(self):
        return self.model.now

    def is_holding(self):
        return any(line.holder in {node.id for node in self.nodes} for line in self.model.lines.values())

    # Who creates

    @rule(line=lines, at=times, given=options, is_woken=st.booleans())
    def create(self, line, at, given, is_woken):
        """Create one job; its creator may die between commit and wake-up."""
        queuetopia, (_, name) = CLASSES[line[0]], line
        new = queuetopia.job(name, "noop", scheduled_at=self.time(at), **given)
        if is_woken:
            jobs.create(queuetopia, [new])
        else:
            new.save(force_insert=True)
            new.refresh_from_db()
        self.created([new], is_woken)

    @rule(scope=scopes, given=st.lists(st.tuples(st.sampled_from(NAMES), times, options), min_size=1, max_size=5))
    def create_jobs(self, scope, given):
        queuetopia = CLASSES[scope]
        new = [queuetopia.job(name, "noop", scheduled_at=self.time(at), **more) for name, at, more in given]
        self.created(queuetopia.create_jobs(new), is_woken=True)

    @rule(line=lines)
    def create_and_roll_back(self, line):
        with contextlib.suppress(ZeroDivisionError), transaction.atomic():
            CLASSES[line[0]].create_job(line[1], "noop")
            raise ZeroDivisionError

    def time(self, at):
        return None if at is None else self.now + at * SECOND

    def created(self, new, is_woken):
        for job in new:
            self.model.jobs[job.pk] = Job.objects.get(pk=job.pk)
            line = self.model.lines[job.scope, job.queue]
            if line.running is None and not is_woken:
                line.asleep = True

    # Nodes

    @rule(index=st.integers(0, 1), limit=st.sampled_from([1, 2, 100]))
    def claim(self, index, limit):
        served = {line for line in LINES if self.model.is_served(line)}
        surely = {line for line in served if not self.may_be_left_alone(line)}
        node = self.nodes[index]
        claims = node.run(claim, node.backend, limit, scopes=CLASSES, holder=node.id, now=self.now)
        self.begun(claims, node)
        found = {(one.scope, one.queue) for one in claims}
        assert found <= served
        assert len(found) == limit or found >= surely, f"left alone: {surely - found}"

    @initialize(index=st.integers(0, 1))
    def begin_at_work(self, index):
        self.start_all(index)

    @rule(index=st.integers(0, 1))
    def start_all(self, index):
        """Have something to do in every queue, and a node do it."""
        for line in LINES:
            if self.model.lines[line].paused:
                self.pause_or_resume(line)
            self.create(line, -5, {}, is_woken=True)
        self.claim(index, 100)

    def may_be_left_alone(self, line):
        state = self.model.lines[line]
        return state.asleep or (state.not_before is not None and state.not_before > self.now)

    @precondition(is_holding)
    @rule(
        data=st.data(),
        verdict=verdicts,
        delay=delays,
        keep=st.booleans(),
        problem=st.sampled_from(["", "no code"]),
    )
    def end_one(self, data, verdict, delay, keep, problem):
        self.record([self.ending(self.choose_running(data), verdict, delay, problem)], keep)

    @precondition(is_holding)
    @rule(data=st.data(), keep=st.booleans())
    def end_all(self, data, keep):
        """A batch of results of one node, most of them successes."""
        holder = self.line_of(self.choose_running(data)).holder
        batch = [line.running for line in self.model.lines.values() if line.holder == holder]
        kinds = st.sampled_from([*[Verdict.DONE] * 4, Verdict.RETRY, Verdict.HALT, Verdict.SNOOZE, Verdict.DEFER])
        self.record([self.ending(one, data.draw(kinds), 0.0) for one in batch], keep)

    @precondition(is_holding)
    @rule(data=st.data(), keep=st.booleans())
    def fail(self, data, keep):
        """What a failure makes of the job is what its options say."""
        one = self.choose_running(data)
        outcome = jobs.failed(CLASSES[one.scope], one, ConnectionError("refused"))
        self.check_exhaustion(one, outcome)
        self.record([end(one)._replace(outcome=outcome)], keep)

    def check_exhaustion(self, one, outcome):
        job, queuetopia = self.model.jobs[one.job_id], CLASSES[one.scope]
        assert one.attempt == job.attempts + 1
        if one.attempt < (job.max_attempts or queuetopia.option("max_attempts")):
            assert outcome.verdict == Verdict.RETRY
        else:
            assert outcome.verdict == (job.on_exhausted or queuetopia.option("on_exhausted"))
        cap = queuetopia.option("max_backoff") if job.max_backoff is None else job.max_backoff
        expected = min(2 ** (one.attempt - 1) + 1, cap) if outcome.verdict == Verdict.RETRY else 0
        assert outcome.delay == expected

    def choose_running(self, data):
        running = [
            line.running for line in self.model.lines.values() if line.holder in {node.id for node in self.nodes}
        ]
        return data.draw(st.sampled_from(running))

    def line_of(self, one):
        return self.model.lines[one.scope, one.queue]

    def ending(self, one, verdict, delay, problem=""):
        failed = verdict in (Verdict.RETRY, Verdict.HALT, Verdict.SKIP) or (verdict == Verdict.RETURN and problem)
        error = describe(ConnectionError(problem or "refused")) if failed else None
        return end(one, verdict, delay=delay, error=error, memory=self.remembering(one))

    def remembering(self, one):
        """What the queue remembers when this job is done, too; a failed attempt may have got as far."""
        done = json.loads(one.memory or '{"done": []}')["done"]
        return json.dumps({"done": [*done, one.job_id]})

    def record(self, endings, keep):
        holder = self.line_of(endings[0].claim).holder
        (node,) = (node for node in self.nodes if node.id == holder)
        recorded = node.run(record, node.backend, *endings, keep=keep, holder=node.id, now=self.now)
        assert {ending.claim for ending in recorded.written} == {ending.claim for ending in endings}
        for ending in endings:
            self.ended(ending)
        goes_on = {
            (ending.claim.scope, ending.claim.queue)
            for ending in endings
            if keep and self.model.jobs[ending.claim.job_id].done_at and self.model.is_served(_line(ending.claim))
        }
        assert {_line(one) for one in recorded.claims} == goes_on
        self.begun(recorded.claims, node)

    def begun(self, claims, node):
        for one in claims:
            line = self.line_of(one)
            assert self.model.is_served(_line(one)), "a queue was run that is not to be served"
            assert one.job_id == self.model.head(_line(one)).pk, "not the head was run"
            assert one.fence > line.fence, "the fence did not rise"
            assert one.attempt == self.model.jobs[one.job_id].attempts + 1
            assert json.loads(one.memory or "null") == (line.memory and {"done": line.memory})
            line.running, line.holder, line.fence, line.stop_requested = one, node.id, one.fence, False
            line.not_before, line.asleep = None, False

    def ended(self, ending):
        """What the rules make of an attempt's end."""
        one, outcome = ending.claim, ending.outcome
        line, job, later = self.line_of(one), self.model.jobs[one.job_id], self.now + outcome.delay * SECOND
        verdict = outcome.verdict
        if line.stop_requested and verdict not in ENDINGS:
            verdict = Verdict.CANCEL
        if outcome.verdict == Verdict.RETURN and verdict == Verdict.RETURN:
            line.not_before, line.has_problem = later, bool(outcome.error)
        elif outcome.verdict != Verdict.RETURN:
            job.attempted_at = self.now
            job.attempts += MEANING[verdict].counted
            job.next_attempt_at = None
            job.outside = {} if verdict == Verdict.DEFER else None
        if verdict in (Verdict.RETRY, Verdict.SNOOZE, Verdict.DEFER, Verdict.INTERRUPT):
            job.next_attempt_at = later
        elif verdict == Verdict.HALT:
            job.state = "halted"
        elif verdict != Verdict.RETURN:
            job.state = {"done": "done", "skip": "skipped", "cancel": "cancelled"}[verdict]
            job.done_at, job.next_attempt_at = self.now, None
        if verdict == Verdict.DONE:
            line.memory = [*(line.memory or []), job.pk]
        line.running = line.holder = None
        line.stop_requested = False
        if verdict != Verdict.RETURN:
            line.asleep = False

    # Nodes that die

    @precondition(is_holding)
    @rule(data=st.data(), is_seen_at_once=st.booleans())
    def crash(self, data, is_seen_at_once):
        holder = self.line_of(self.choose_running(data)).holder
        (index,) = (index for index, node in enumerate(self.nodes) if node.id == holder)
        self.nodes[index].close()
        self.dead.append(holder)
        self.nodes[index] = self.new_node()
        for line in self.model.lines.values():
            if line.has_problem:  # which a new node forgets
                line.not_before = None
        if is_seen_at_once:
            self.take_over(1 - index, holder)

    @precondition(lambda self: self.dead)
    @rule(index=st.integers(0, 1), data=st.data())
    def look_for_the_dead(self, index, data):
        self.take_over(index, data.draw(st.sampled_from(self.dead)))

    def take_over(self, index, dead):
        node = self.nodes[index]
        node.run(nodes.fence, node.backend, dead)
        lost = [one for one, _ in node.run(nodes.lost_claims, node.backend, dead, [*CLASSES], 100)]
        held = [line.running for line in self.model.lines.values() if line.holder == dead]
        assert {one.job_id for one in lost} == {one.job_id for one in held}
        assert len(node.run(node.backend.try_lock, [one.queue_id for one in lost])) == len(lost)
        outcomes = [jobs.failed(CLASSES[one.scope], one, NodeDied("vanished"), delay=0.0) for one in lost]
        endings = [end(one)._replace(outcome=outcome) for one, outcome in zip(lost, outcomes, strict=True)]
        recorded = node.run(record, node.backend, *endings, holder=node.id, now=self.now)
        assert len(recorded.written) == len(lost)
        for ending in endings:
            self.ended(ending)
        self.stale += held
        self.dead.remove(dead)
        assert node.run(nodes.holds_nothing, node.backend, dead)

    @precondition(lambda self: self.stale)
    @rule(index=st.integers(0, 1), data=st.data(), verdict=verdicts)
    def record_late(self, index, data, verdict):
        """A dead node comes back with a result, while another one runs the job again if there is one."""
        self.claim(1 - index, 100)
        node, one = self.nodes[index], data.draw(st.sampled_from(self.stale))
        late = end(one, verdict, memory=self.remembering(one))
        recorded = node.run(record, node.backend, late, keep=True, holder=node.id, now=self.now)
        assert [ending.claim for ending in recorded.stale] == [one]
        assert not recorded.written and not recorded.claims

    # People

    @rule(data=st.data(), verb=st.sampled_from(["retry", "skip", "cancel"]))
    def do_verb(self, data, verb):
        if not self.model.jobs:
            return
        job = self.model.jobs[data.draw(st.sampled_from(sorted(self.model.jobs)))]
        line = self.model.lines[job.scope, job.queue]
        is_running = line.running is not None and line.running.job_id == job.pk
        is_blocked = job.done_at is None and not is_running and job.attempted_at is not None
        is_outside = job.outside is not None and not is_running
        may_cancel = job.done_at is not None or is_running or job.attempted_at is None or is_outside
        if is_blocked if verb != "cancel" else may_cancel:
            answer = getattr(CLASSES[job.scope], verb)(job.pk)
            getattr(self, f"did_{verb}")(job, line, is_running, answer)
            self.looked_again(line)
        else:
            with pytest.raises(Refused):
                getattr(CLASSES[job.scope], verb)(job.pk)

    def did_retry(self, job, line, is_running, answer):
        if job.state == "halted" and job.attempts >= (job.max_attempts or CLASSES[job.scope].option("max_attempts")):
            job.max_attempts = job.attempts + 1
        job.state, job.next_attempt_at, job.outside = "pending", answer.next_attempt_at, None
        assert job.next_attempt_at <= self.now
        line.not_before, line.asleep = None, False

    def did_skip(self, job, line, is_running, answer):
        job.state, job.done_at, job.next_attempt_at = "skipped", answer.done_at, None
        line.not_before, line.asleep = None, False

    def did_cancel(self, job, line, is_running, answer):
        if job.done_at is not None:
            assert answer == "finished"
        elif is_running:
            assert answer == "running"
            line.stop_requested = True
        else:
            assert answer == "cancelled"
            job.state, job.done_at = "cancelled", Job.objects.get(pk=job.pk).done_at
            job.next_attempt_at = None

    def looked_again(self, line):
        """Whoever has had a queue's row locked looks for jobs that were created meanwhile."""
        line.asleep = False

    @rule(line=lines)
    def pause_or_resume(self, line):
        state, (scope, name) = self.model.lines[line], line
        if state.paused:
            CLASSES[scope].resume(name)
            with pytest.raises(Refused):
                CLASSES[scope].resume(name)
        else:
            CLASSES[scope].pause(name)
        state.paused = not state.paused
        self.looked_again(state)

    @rule(scope=scopes, line=lines)
    def pause_a_scope_for_a_while(self, scope, line):
        """Nothing of it starts, whoever creates what."""
        CLASSES[scope].pause()
        self.model.paused.add(scope)
        self.create(line, None, {}, is_woken=True)
        for index in range(len(self.nodes)):
            self.claim(index, 100)
        self.every_queue_is_as_the_rules_say()
        CLASSES[scope].resume()
        self.model.paused.remove(scope)

    @rule(data=st.data(), at=times)
    def edit(self, data, at):
        """Somebody changes the time of a job that was never attempted, in a database shell."""
        waiting = [job for job in self.model.jobs.values() if job.done_at is None and job.attempted_at is None]
        if waiting:
            job = data.draw(st.sampled_from(sorted(waiting, key=lambda job: job.pk)))
            job.scheduled_at = self.time(at or 0)
            Job.objects.filter(pk=job.pk).update(scheduled_at=job.scheduled_at)
            self.model.lines[job.scope, job.queue].asleep = True

    # Time, and what nodes do now and then

    @rule(seconds=st.sampled_from([0.1, 1, 2, 5, 60, 3600]))
    def wait(self, seconds):
        self.model.now += timedelta(seconds=seconds)

    @rule(index=st.integers(0, 1), limit=st.sampled_from([1, 2, 100]))
    def sweep(self, index, limit):
        node = self.nodes[index]
        for scope in CLASSES:
            after = ""
            while after is not None:
                _, after = node.run(upkeep.sweep, node.backend, scope, after, limit)
        for row in Queue.objects.filter(problem=""):
            self.model.lines[row.scope, row.name].asleep = False

    @rule(scope=scopes, data=st.data())
    def prune(self, scope, data):
        """Some jobs have ended long ago; everything unfinished is older still."""
        ended = sorted(pk for pk, job in self.model.jobs.items() if job.done_at is not None)
        old = {pk for pk in ended if data.draw(st.booleans())}
        Job.objects.filter(pk__in=old).update(done_at=self.backend.now() - 400 * HOUR)
        for pk in old:
            self.model.jobs[pk].done_at = Job.objects.get(pk=pk).done_at
        gone = {pk for pk in ended if self.model.jobs[pk].scope == scope and
                self.model.jobs[pk].done_at < self.backend.now() - 24 * 7 * HOUR}  # fmt: skip
        assert CLASSES[scope].option("retention") == 7 * 86_400
        assert jobs.prune(CLASSES[scope]) == len(gone)
        for pk in gone:
            del self.model.jobs[pk]

    # What always holds

    @invariant()
    def every_job_is_as_the_rules_say(self):
        columns = ("pk", "state", "attempts", "max_attempts", "scheduled_at", "attempted_at", "next_attempt_at",
                   "done_at")  # fmt: skip
        stored = {row[0]: row[1:] for row in Job.objects.values_list(*columns)}
        assert stored == {
            pk: tuple(getattr(job, column) for column in columns[1:]) for pk, job in self.model.jobs.items()
        }

    @invariant()
    def every_queue_is_as_the_rules_say(self):
        rows = {(row.scope, row.name): row for row in Queue.objects.all()}
        for place, line in self.model.lines.items():
            row = rows.get(place)
            if row is None:
                assert line.fence == 0 and (line.asleep or not self.model.unfinished(place))
                continue
            assert row.fence == line.fence
            assert row.held_by == line.holder
            assert row.memory == (line.memory and {"done": line.memory})
            assert row.stop_requested == line.stop_requested
            assert (row.paused_at is not None) == line.paused
            if line.running is not None:
                assert (row.current_job, row.attempt) == (line.running.job_id, line.running.attempt)
            else:
                self.check_idle(place, line, row)

    def check_idle(self, place, line, row):
        head, due_at = self.model.head(place), self.model.due_at(place)
        if head is not None and head.attempted_at is not None:
            assert row.current_job == head.pk, "a blocked queue does not know its head"
        else:
            assert row.current_job is None
        if head is not None and head.state == "halted":
            assert row.due_at is None, "a halted queue is due"
        elif due_at is not None and not line.asleep:
            assert row.due_at is not None, "a queue with work is asleep"
            assert row.due_at <= max(filter(None, (due_at, self.now, line.not_before)))


def _line(one):
    return one.scope, one.queue


@pytest.mark.slow
@pytest.mark.capability("E18", "E23", "H1")
@pytest.mark.timeout(300 + EXAMPLES)
@pytest.mark.django_db(transaction=True)
def test_whatever_happens_in_whatever_order_the_rules_hold(monkeypatch):
    # No node gives back here what it has not begun, so no verb waits for it.
    monkeypatch.setattr(deciding, "UNBEGUN", timedelta(0))
    run_state_machine_as_test(
        Rules,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=[*HealthCheck],
        ),
    )
