"""Files that other programs read, of which none runs here: they parse, and name what there is."""

import pytest
import yaml
from django.core.management import get_commands

from tests.conftest import REPOSITORY

NAMES = [".pre-commit-config.yaml", ".readthedocs.yaml", "compose.yaml"]
FOLDERS = [".github/workflows", ".github/ISSUE_TEMPLATE", "docs/prometheus"]
FILES = [
    *(REPOSITORY / name for name in NAMES),
    *(path for folder in FOLDERS for path in sorted((REPOSITORY / folder).glob("*.yml"))),
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_of_yaml_parses(path):
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_there_are_all_of_them():
    assert len(FILES) >= 8


def test_the_services_of_the_example_run_commands_that_there_are():
    services = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())["services"]
    commands = [service["command"] for service in services.values() if "command" in service]
    assert len(commands) == 3
    for python, manage, name, *_ in commands:
        assert (python, manage) == ("python", "manage.py")
        assert name in get_commands()
    for service in services.values():
        assert set(service.get("depends_on", {})) <= set(services)


def test_the_image_copies_files_that_there_are():
    lines = (REPOSITORY / "Dockerfile").read_text().splitlines()
    copied = [source for line in lines if line.startswith("COPY ") for source in line.split()[1:-1]]
    assert "queuetopia" in copied
    assert [source for source in copied if not (REPOSITORY / source).exists()] == []
    assert [line.split()[0] for line in lines if line and line[0] not in "# "] == [
        "FROM", "WORKDIR", "COPY", "COPY", "COPY", "RUN", "ENV", "EXPOSE", "CMD",
    ]  # fmt: skip
