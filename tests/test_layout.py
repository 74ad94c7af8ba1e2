"""Where things are: rules of the house that a reader relies on."""

import ast
import inspect
import re
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import queuetopia
from queuetopia.backends.base import Backend

PACKAGE = Path(queuetopia.__file__).parent
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "migrations" not in path.parts)
CORE = [path for path in MODULES if "backends" not in path.parts]
BACKENDS = [path for path in MODULES if "backends" in path.parts and "contract" not in path.parts]


def name(path):
    return str(path.relative_to(PACKAGE))


def code(path):
    """Return the module's text without comments and docstrings."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            node.body[0].value.value = ""
    return ast.unparse(tree)


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)


@pytest.mark.parametrize("path", CORE, ids=name)
def test_only_jobs_and_the_backends_write(path):
    if path.parent.name == "jobs" and path.parents[1] == PACKAGE:
        return
    writes = r"\.(bulk_create|bulk_update|get_or_create|update_or_create)\(|objects[^\n]*\.(create|update|delete)\("
    ours = code(path).replace("LogEntry.objects.bulk_create(", "")  # the admin's own log
    assert re.findall(writes, ours) == []


@pytest.mark.parametrize("path", CORE, ids=name)
def test_only_the_backends_know_the_vendor(path):
    assert re.findall(r"\.vendor\b|cursor\(|\.execute\(|pg_\w+|PRAGMA", code(path)) == []


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_only_conf_reads_the_projects_settings(path):
    if name(path) != "conf.py":
        assert ("django.conf", ["settings"]) not in list(imports(path))


def test_a_performer_can_be_imported_without_models():
    allowed = {"performer.py": {".completion"}, "completion.py": {".exceptions"}, "exceptions.py": set()}
    for path, modules in allowed.items():
        assert {module for module, _ in imports(PACKAGE / path) if module.startswith(".")} == modules


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_nothing_of_the_tests_is_needed_where_queuetopia_is_installed(path):
    roots = {module.split(".")[0] for module, _ in imports(path)}
    is_contract = "contract" in path.parts
    assert roots & {"tests", "pytest", "hypothesis"} <= ({"pytest"} if is_contract else set())


def modules_imported_by(path):
    """Return the modules of ours that this one imports, at its top or in a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            named = {_module(folder / alias.name) for alias in node.names} & set(MODULES)
            found |= named or {_module(folder)}
    return found


def _module(path):
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def test_no_imports_go_in_a_circle():
    list(TopologicalSorter({path: modules_imported_by(path) for path in MODULES}).static_order())


# The rooms, and which others each may import, functions included; all may import the ground. In the worker alone a
# project's code runs: the scheduler's side and the worker's know nothing of each other but what the ground says.
ROOMS: dict[str, set[str]] = {
    "backends": set(),
    "contract": {"backends", "doors"},  # tests, for projects with a backend of their own
    "jobs": {"backends"},
    "monitoring": {"backends"},
    "node": {"backends", "jobs", "monitoring"},
    "worker": {"backends", "jobs", "monitoring"},
    "admin": {"backends", "jobs", "monitoring", "doors"},
    "management": {"backends", "jobs", "monitoring", "doors", "node"},
    "contrib": {"backends", "monitoring", "doors"},
    "doors": {"backends", "jobs", "monitoring", "worker"},
    "ground": {"ground"},
}
# What projects import, and what stands between them and several rooms.
DOORS = {
    "declaration.py",
    "testing.py",
    "checks.py",
    "verbs.py",
    "views.py",
    "terminal.py",
    "apps.py",
    "__main__.py",
    "__init__.py",
}
EXCEPTIONS = {
    ("models.py", "backends/columns.py"): "the columns' types, which migrations import from there",
}


def room_of(path):
    parts = path.relative_to(PACKAGE).parts
    if parts[:2] == ("backends", "contract"):
        return "contract"
    if len(parts) > 1:
        return parts[0]
    return "doors" if parts[0] in DOORS else "ground"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_each_room_imports_only_those_it_may(path):
    room = room_of(path)
    for imported in modules_imported_by(path):
        other = room_of(imported)
        if other not in {room, "ground", *ROOMS[room]}:
            assert (name(path), name(imported)) in EXCEPTIONS


def test_every_room_and_every_exception_is_there():
    assert {room_of(path) for path in MODULES} == set(ROOMS)
    assert {name(path) for path in MODULES if room_of(path) == "doors"} == DOORS
    imports = {(name(path), name(imported)) for path in MODULES for imported in modules_imported_by(path)}
    assert EXCEPTIONS.keys() <= imports


# Who assigns attributes of what is not its own, by the names in the code, and why that is right.
ROW = "a row belongs to the function that loaded or made it, until it is written or shown"
OWN = "a record that is made, filled and read in this module alone"
FOREIGN = "state of Python's or Django's, of which this module has charge in its process"
ASSIGNED_BY_OTHERS = {
    ("admin/base.py", "row"): ROW,
    ("admin/base.py", "request"): FOREIGN,
    ("admin/jobs.py", "row"): ROW,
    ("admin/jobs.py", "job"): ROW,
    ("admin/jobs.py", "head._state"): ROW,
    ("admin/overview.py", "row"): ROW,
    ("backends/breakers.py", "row"): ROW,
    ("admin/overview.py", "row._state"): ROW,
    ("admin/overview.py", "request"): FOREIGN,
    ("admin/queues.py", "row"): ROW,
    ("admin/queues.py", "queue"): ROW,
    ("admin/schedules.py", "row"): ROW,
    ("backends/base.py", "private"): FOREIGN,
    ("backends/base.py", "queue"): ROW,
    ("backends/base.py", "job"): ROW,
    ("backends/postgresql.py", "job"): ROW,
    ("backends/postgresql.py", "job._state"): ROW,
    ("backends/rows.py", "queue"): ROW,
    ("backends/standby.py", "beside"): FOREIGN,
    ("backends/standby.py", "driver"): FOREIGN,
    ("backends/sqlite.py", "queue"): ROW,
    ("backends/upkeep.py", "queue"): ROW,
    ("backends/upkeep.py", "row"): ROW,
    ("jobs/bulk.py", "job"): ROW,
    ("jobs/creating.py", "job"): ROW,
    ("jobs/deciding.py", "job"): ROW,
    ("jobs/deciding.py", "self.job"): ROW,
    ("jobs/deciding.py", "verb.job"): ROW,
    ("jobs/scheduling.py", "row"): ROW,
    ("management/commands/run_queuetopia.py", "parse"): OWN,
    ("models.py", "job"): ROW,
    ("monitoring/census.py", "row"): OWN,
    ("monitoring/health.py", "facts"): OWN,
    ("node/log_queue.py", "log"): FOREIGN,
    ("node/log_queue.py", "logging"): FOREIGN,
    ("node/log_queue.py", "filterer"): FOREIGN,
    ("node/log_queue.py", "record"): FOREIGN,
    ("node/scheduler.py", "sent"): FOREIGN,
    ("node/scheduler.py", "connection_created"): FOREIGN,
    ("node/supervisor.py", "self._scheduler"): FOREIGN,
    ("node/tally.py", "row"): OWN,
    ("node/worker_process.py", "assignment"): OWN,
    ("node/worker_process.py", "self.board"): "shared memory, of which this class is the scheduler's side",
    ("terminal.py", "parser"): FOREIGN,
    ("jobs/carrying.py", "job"): ROW,
    ("worker/news.py", "job"): ROW,
    ("worker/news.py", "stored"): ROW,
    ("worker/performing.py", "job"): ROW,
    ("worker/performing.py", "state"): ROW,
    ("worker/process.py", "attempt"): OWN,
    ("worker/surroundings.py", "sys"): FOREIGN,
    ("worker/surroundings.py", "_root.manager"): FOREIGN,
}


def assigned_by_others(path):
    """Return what the module assigns attributes of, except ``self`` and ``cls``."""
    return {
        (name(path), ast.unparse(node.value))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del)
    } - {(name(path), own) for own in ("self", "cls")}


def test_each_state_has_one_owner():
    assert set().union(*map(assigned_by_others, CORE + BACKENDS)) == ASSIGNED_BY_OTHERS.keys()


def attributes(tree):
    """Return the private names that are attributes here: of ``self`` and ``cls``, and of anything else."""
    own, others = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.Attribute):
            (own if ast.unparse(node.value) in ("self", "cls") else others).add(node.attr)
    return tuple({name for name in names if re.match("_[^_]", name)} for names in (own, others))


def test_tests_read_no_private_parts_of_the_package():
    private = set().union(*(attributes(ast.parse(path.read_text()))[0] for path in MODULES)) - {"_fields"}  # of tuples
    found = {}
    for path in sorted((PACKAGE.parent / "tests").rglob("*.py")):
        own, others = attributes(ast.parse(path.read_text()))
        found[path.name] = (others - own) & private
    assert {name: names for name, names in found.items() if names} == {}


def test_no_module_has_a_name_that_says_nothing():
    assert [name(path) for path in MODULES if path.stem in {"tasks", "utils", "helpers", "common", "misc"}] == []


def test_the_contract_of_a_backend_is_what_differs_between_databases():
    """What is the same on each of them is a function that takes a backend."""
    methods = [
        name for name, value in vars(Backend).items() if inspect.isfunction(value) or isinstance(value, property)
    ]
    assert len(methods) <= 50


PAGE = (PACKAGE.parent / "docs/how-it-works.md").read_text()


@pytest.mark.parametrize(
    "place", re.findall(r"`([\w/]+\.py::[\w.]+)`", PAGE.split("## A job's path")[1].split("\n## ")[0])
)
def test_the_path_of_a_job_is_told_with_names_that_exist(place):
    file, _, qualified = place.partition("::")
    found: object = import_module(".".join(["queuetopia", *Path(file).with_suffix("").parts]))
    for part in qualified.split("."):
        found = getattr(found, part)


def test_the_picture_of_the_house_has_each_module():
    told = PAGE.split("## The house")[1].split("\n## ")[0]
    files = {path for path in MODULES if path.stem not in {"__init__", "__main__", "apps"} and room_of(path) not in {
        "admin", "management", "contract"}}  # fmt: skip
    assert [name(path) for path in files if f"`{path.name}`" not in told] == []


def test_the_lists_of_how_to_add_something_name_what_exists():
    lists = (PACKAGE.parent / "CONTRIBUTING.md").read_text().split("## How to add")[1].split("\n## ")[0]
    for place in re.findall(r"`((?:[a-z_]+/)*[a-z_]+\.py(?:::\w+)?)`", lists):
        file, _, qualified = place.partition("::")
        root = PACKAGE.parent if file.startswith("tests/") else PACKAGE
        assert (root / file).exists(), file
        if qualified:
            assert re.search(rf"^(class )?{qualified}\b", (root / file).read_text(), re.MULTILINE), place
