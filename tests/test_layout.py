"""Where things are: rules of the house that a reader relies on."""

import ast
import re
from pathlib import Path

import pytest

import queuetopia

PACKAGE = Path(queuetopia.__file__).parent
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "migrations" not in path.parts)
CORE = [path for path in MODULES if "backends" not in path.parts]


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
    if name(path) == "jobs.py":
        return
    writes = r"\.(bulk_create|bulk_update|get_or_create|update_or_create)\(|objects[^\n]*\.(create|update|delete)\("
    assert re.findall(writes, code(path)) == []


@pytest.mark.parametrize("path", CORE, ids=name)
def test_only_the_backends_know_the_vendor(path):
    assert re.findall(r"\.vendor\b|cursor\(|\.execute\(|pg_\w+|PRAGMA", code(path)) == []


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_only_conf_reads_the_projects_settings(path):
    if name(path) != "conf.py":
        assert ("django.conf", ["settings"]) not in list(imports(path))


def test_a_performer_can_be_imported_without_models():
    assert [module for module, _ in imports(PACKAGE / "performer.py") if module.startswith(".")] == []


@pytest.mark.parametrize(
    ("path", "above"),
    [
        ("models.py", {"jobs", "declaration", "scheduler", "worker", "status", "testing"}),
        ("params.py", {"models", "jobs", "declaration"}),
        ("attempts.py", {"models", "jobs", "declaration", "backends"}),
        ("backends/base.py", {"jobs", "declaration", "scheduler", "worker", "pool"}),
        ("jobs.py", {"declaration", "scheduler", "worker", "pool", "supervisor"}),
        ("worker.py", {"scheduler", "pool", "supervisor", "store"}),
        ("pool.py", {"scheduler", "store", "housekeeping", "supervisor"}),
        ("processes.py", {"models", "jobs", "declaration", "scheduler", "worker"}),
    ],
)
def test_imports_go_one_way(path, above):
    tree = ast.parse((PACKAGE / path).read_text())
    imported = set()
    for node in tree.body:  # what a function imports when it is called is not the module's
        if isinstance(node, ast.ImportFrom) and node.level:
            imported |= {(node.module or "").split(".")[0], *(alias.name for alias in node.names)}
    assert imported & above == set()


def test_no_module_has_a_name_that_says_nothing():
    assert [name(path) for path in MODULES if path.stem in {"tasks", "utils", "helpers", "common", "misc"}] == []
