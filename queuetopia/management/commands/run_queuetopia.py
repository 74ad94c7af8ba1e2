"""``manage.py run_queuetopia``: serve the queues until stopped."""

import atexit
import os
import sys
import tempfile
import threading
from difflib import get_close_matches

from django.core.checks import Tags, run_checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError
from django.db import Error, connections
from django.utils import autoreload

from ... import conf
from ...backends.trouble import database_trouble
from ...node.cpus import usable_cpus
from ...node.protocol import SLICE, Options
from ...node.supervisor import Supervisor, require_settings_module
from ...processes import log_to_stderr
from ...registry import by_scope, disabled
from ...terminal import TerminalCommand


class Command(TerminalCommand):
    help = "Run the jobs of all Queuetopias, or of the scopes named. SIGTERM or Ctrl-C stops gracefully, twice at once."

    def add_arguments(self, parser):
        parser.add_argument("scopes", nargs="*", metavar="SCOPE", help="scopes to serve; default: all")
        parser.add_argument(
            "--processes",
            type=_positive(int),
            default=usable_cpus(),
            help="worker processes; default: the CPUs that this process may use",
        )
        parser.add_argument(
            "--concurrency", type=_positive(int), default=1, help="attempts at once per worker process; default: 1"
        )
        parser.add_argument(
            "--poll-interval",
            type=_positive(float),
            help="seconds between sweeps for lost wake-ups; default: the scopes' option",
        )
        parser.add_argument(
            "--grace", type=_not_negative, default=30.0, help="seconds running jobs have to end on a stop; default: 30"
        )
        parser.add_argument(
            "--until-empty",
            action="store_true",
            help="end when every queue is empty, halted, paused or scheduled for later; exit code 1 if "
            "a job is left that is halted or that this code cannot run",
        )
        parser.add_argument("--standby", action="store_true", help="wait until no other node serves these scopes")
        parser.add_argument(
            "--slice",
            type=_positive(int),
            default=SLICE,
            help=f"jobs a queue may go straight on with while others wait; 1: strictly in turn; default: {SLICE}",
        )
        parser.add_argument(
            "--max-jobs-per-worker",
            type=_positive(int),
            metavar="N",
            help="replace a worker process that has run so many jobs, or up to a tenth fewer; default: never",
        )
        parser.add_argument(
            "--max-memory-per-worker",
            type=_positive(int),
            metavar="MB",
            help="replace a worker process that takes more memory after a job; default: never",
        )
        parser.add_argument("--reload", action="store_true", help="restart when code changes (development)")

    def handle(self, *, scopes, **given):
        scopes = list(dict.fromkeys(scopes))
        if conf.setting("ENABLED") is False:
            self.stderr.write(self.style.WARNING("Not running: QUEUETOPIA['ENABLED'] is False."))
            return
        try:
            require_settings_module()
        except ImproperlyConfigured as exc:
            raise CommandError(str(exc)) from None
        self._refuse_unknown(scopes)
        if off := disabled(scopes):
            is_all = len(off) == len(scopes or by_scope())
            where = f"QUEUETOPIA['ENABLED'] is False for {', '.join(off)}."
            self.stderr.write(self.style.WARNING(f"Not {'running' if is_all else 'serving all'}: {where}"))
            if is_all:
                return
        self._check_databases(scopes)
        self.warn_without_temporary_folder()
        log_to_stderr(given["verbosity"])
        options = Options(
            scopes=scopes,
            processes=given["processes"],
            concurrency=given["concurrency"],
            poll_interval=given["poll_interval"],
            grace=given["grace"],
            until_empty=given["until_empty"],
            standby=given["standby"],
            slice=given["slice"],
            progress=sys.stderr.isatty(),
            verbosity=given["verbosity"],
            max_jobs_per_worker=given["max_jobs_per_worker"],
            max_memory_per_worker=given["max_memory_per_worker"],
        )
        if given["reload"]:
            self._run_reloading(options)
        elif code := Supervisor(options).run():
            sys.exit(code)

    def _refuse_unknown(self, scopes):
        known = by_scope()
        if not known:
            raise CommandError(
                "No Queuetopia is declared. Put a class with a performer into the module 'queues' of an installed app."
            )
        for scope in scopes:
            if scope not in known:
                close = get_close_matches(scope, known, n=1)
                hint = f"Did you mean {close[0]!r}?" if close else f"There are: {', '.join(sorted(known))}."
                raise CommandError(f"No Queuetopia has the scope {scope!r}. {hint}")

    def _check_databases(self, scopes):
        served = [queuetopia for scope, queuetopia in by_scope().items() if not scopes or scope in scopes]
        aliases = sorted({queuetopia.database() for queuetopia in served})
        try:
            problems = run_checks(tags=[Tags.database], databases=aliases)
        except Error as exc:  # Django's own checks of MySQL connect, and let it through
            raise CommandError(database_trouble(exc).message) from exc
        for problem in problems:
            if problem.id == "queuetopia.W007":
                raise CommandError(f"{problem.msg} {problem.hint}")
        connections.close_all()  # the supervisor needs none

    def warn_without_temporary_folder(self):
        try:
            tempfile.gettempdir()
        except FileNotFoundError:
            text = (
                "No folder for temporary files can be written to. Set TMPDIR to one: without it other nodes on this "
                "host wait for the lease (15 s, LEASE) before they take over from this one after a crash."
            )
            self.stderr.write(self.style.WARNING(text))

    def _run_reloading(self, options):
        """Run under Django's autoreloader, which calls us in a thread; the main thread is where signals arrive."""
        if os.environ.get(autoreload.DJANGO_AUTORELOAD_ENV) != "true":
            autoreload.run_with_reloader(lambda: None)
            return
        supervisor = Supervisor(options)
        ended = threading.Event()

        def run():
            try:
                supervisor.run()
            finally:
                ended.set()

        def stop():
            supervisor.request_stop()
            ended.wait(options.grace + 10)

        atexit.register(stop)
        autoreload.run_with_reloader(run)


def _positive(kind):
    def parse(text):
        value = kind(text)
        if not 0 < value < float("inf"):
            raise ValueError(text)
        return value

    parse.__name__ = f"positive {kind.__name__}"  # what argparse calls it in its error
    return parse


def _not_negative(text):
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(text)
    return value
