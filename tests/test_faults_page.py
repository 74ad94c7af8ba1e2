"""The page of faults names tests that are there, and commands that can be given."""

import re

import pytest

from tests.conftest import REPOSITORY
from tests.faults.__main__ import arguments

PAGE = (REPOSITORY / "docs" / "faults.md").read_text()
ROWS = [line.strip("|").split("|") for line in PAGE[PAGE.index("## What could go wrong") :].splitlines() if "|" in line]
PROOFS = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))
RUNS_CONTRACT = "tests/backends/test_contract.py"
CONTRACT = list((REPOSITORY / "queuetopia/backends/contract").glob("*.py"))
COMMANDS = re.findall(r"^python -m tests\.faults ?([^#\n]*)", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("file", "name"), PROOFS)
def test_each_proof_is_a_test(file, name):
    sources = "".join(path.read_text() for path in (REPOSITORY / file, *(CONTRACT if file == RUNS_CONTRACT else ())))
    assert re.search(rf"^ *(async )?def {name}\(", sources, re.MULTILINE)


def test_each_hazard_has_a_proof_or_a_reason():
    hazards = [row for row in ROWS if not row[0].startswith((" hazard", "---"))]
    assert len(hazards) >= 40
    assert [row for row in hazards if len(row) != 3 or not row[2].strip()] == []
    assert [row for row in hazards if "`tests/" not in row[2] and "not tested: " not in row[2]] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_can_be_given(command):
    assert arguments(command.split()).seconds > 0
