"""The reference shows its signatures as text too, for those who read it where no documentation is built."""

import importlib
import inspect
import re

import pytest

from queuetopia import exceptions
from tests.conftest import REPOSITORY

PAGES = sorted((REPOSITORY / "docs" / "reference").glob("*.md"))
BEGIN, END = "<!-- written by: python -m tests.test_reference -->\n", "<!-- end -->\n\n"
TABLE = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
TREE = re.compile(r"^```text\nQueuetopiaError\n.*?^```", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```\{eval-rst\}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DIRECTIVE = re.compile(r"^ *(?:\.\. (auto\w+|currentmodule):: ([\w.]+)|:members: (.*))$", re.MULTILINE)


def documented(block, module):
    """Yield (name as written, object) of each directive in a block; and at the end the current module."""
    owner = None
    for kind, name, members in DIRECTIVE.findall(block):
        if kind == "automodule":
            continue
        if kind == "currentmodule":
            module = name
        elif members:
            yield from ((f"{owner.__name__}.{each}", getattr(owner, each)) for each in members.split(", "))
        elif kind == "automethod" and "." not in name:
            yield f"{owner.__name__}.{name}", getattr(owner, name)
        else:
            found = resolved(name, module)
            owner = found if inspect.isclass(found) else owner
            yield name, found
    return module


def resolved(name, module):
    """Return what a dotted name means, in a module or by itself."""
    path = name.split(".") if name.startswith("queuetopia") else [*module.split("."), *name.split(".")]
    for end in range(len(path), 0, -1):
        try:
            found = importlib.import_module(".".join(path[:end]))
        except ModuleNotFoundError:
            continue
        for part in path[end:]:
            found = getattr(found, part)
        return found
    raise LookupError(name)


def row(name, found):
    """Return a table's row: how it is called, and the first sentence of its docstring."""
    paragraph = " ".join((inspect.getdoc(found) or "").partition("\n\n")[0].split())
    sentence = re.match(r".*?\.(?= |$)|.*", paragraph)[0]
    text = f"`{name.rpartition('queuetopia.')[2]}{signature(found)}`"
    return f"| {text} | {sentence} |".replace("``", "`")


def signature(found):
    is_called = "__init__" in vars(found) and issubclass(found, BaseException) if inspect.isclass(found) else True
    if isinstance(found, property) or not is_called:
        return ""
    given = inspect.signature(found)
    parameters = [each.replace(annotation=each.empty) for each in given.parameters.values() if each.name != "self"]
    return str(given.replace(parameters=parameters, return_annotation=given.empty))


def written(page):
    """Return a page with tables before its blocks of directives, a module's text, and the tree of exceptions."""
    module, parts, end = "queuetopia", [], 0
    tree = inspect.getdoc(exceptions).partition("\n\n")[2]
    page = TREE.sub(lambda _: f"```text\n{tree}\n```", TABLE.sub("", page))
    for match in BLOCK.finditer(page):
        rows, directives = [], documented(match[1], module)
        while True:
            try:
                rows.append(row(*next(directives)))
            except StopIteration as stop:
                module = stop.value
                break
        table = "".join([BEGIN, "| call | does |\n|---|---|\n", *(f"{line}\n" for line in rows), END]) if rows else ""
        if whole := re.search("automodule:: (.*)", match[1]):
            table = f"{BEGIN}```text\n{inspect.getdoc(importlib.import_module(whole[1]))}\n```\n{END}"
        parts += [page[end : match.start()], table, match[0]]
        end = match.end()
    return "".join([*parts, page[end:]])


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_shows_the_signatures_that_the_code_has(path):
    assert path.read_text() == written(path.read_text()), "run: python -m tests.test_reference"


@pytest.mark.parametrize("path", sorted((REPOSITORY / "docs").rglob("*.md")), ids=lambda path: path.name)
def test_a_page_links_as_any_reader_of_markdown_understands(path):
    assert re.findall(r"\{[\w:]+\}`[^`]*`", path.read_text()) == []


if __name__ == "__main__":
    import django

    django.setup()
    for path in PAGES:
        path.write_text(written(path.read_text()))
