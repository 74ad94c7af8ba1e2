"""``docs/capabilities.md`` lists every capability with the tests that show it, as the tests' marks say."""

import ast
import re
from collections import defaultdict
from pathlib import Path

from tests.acceptance import ACCEPTANCE, MISSING

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "capabilities.md"


def marked_tests():
    """Return {ID: {"file::test", …}} of the marks ``capability(…)``; a marked class or file stands whole."""
    found = defaultdict(set)
    for path in sorted(TESTS.rglob("test_*.py")):
        tree = ast.parse(path.read_text())
        file = path.relative_to(TESTS.parent).as_posix()
        for node in tree.body:
            if isinstance(node, ast.Assign):
                _note(found, _ids(node.value), file)
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                _note(found, _decorators(node), f"{file}::{node.name}")
            if isinstance(node, ast.ClassDef):
                for name, ids in _of_inherited(node).items():
                    _note(found, ids, f"{file}::{node.name}::{name}")
                for method in node.body:
                    if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef):
                        _note(found, _decorators(method), f"{file}::{node.name}::{method.name}")
    return found


def _note(found, ids, test):
    for name in ids:
        found[name].add(test)


def _of_inherited(node):
    """Return {test: IDs} of tests that the class inherits: it has them in a dict, CAPABILITIES."""
    assigned = [each for each in node.body if isinstance(each, ast.Assign) and each.targets[0].id == "CAPABILITIES"]
    return ast.literal_eval(assigned[0].value) if assigned else {}


def _decorators(node):
    return [name for decorator in node.decorator_list for name in _ids(decorator)]


def _ids(expression):
    for node in ast.walk(expression):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "capability":
            yield from (argument.value for argument in node.args)


def rows():
    """Return {ID: tests named in its row} of the page; a row may carry several IDs."""
    page = {}
    for line in PAGE.read_text().splitlines():
        if match := re.match(r"\| ((?:[WEJHQX]\d+ ?)+)\|[^|]*\|(.*)\|$", line):
            tests = set(re.findall(r"`([^`]+)`", match[2]))
            page |= dict.fromkeys(match[1].split(), tests)
    return page


def written_page(intro_and_rows):
    """Return the page with its rows made anew; ``python -m tests.test_capabilities`` writes it."""
    marked, intro = marked_tests(), intro_and_rows.partition("|--")[0]
    lines = ["|---|---|---|"]
    for names, text in ACCEPTANCE.items():
        tests = sorted(set().union(*(marked[name] for name in names.split())))
        text += f" (not yet: {MISSING[names]})" if names in MISSING else ""
        lines.append(f"| {names} | {text} | {'<br>'.join(f'`{test}`' for test in tests)} |")
    return intro + "\n".join(lines) + "\n"


def test_the_page_names_every_mark():
    assert sorted(set(marked_tests()) - set(rows())) == []


def test_every_capability_is_accepted_by_a_test():
    marked = marked_tests()
    assert [names for names in ACCEPTANCE if not any(name in marked for name in names.split())] == []


def test_the_page_says_what_the_marks_say():
    assert PAGE.read_text() == written_page(PAGE.read_text()), "run: python -m tests.test_capabilities"


if __name__ == "__main__":
    PAGE.write_text(written_page(PAGE.read_text()))
