"""docs/ does what it says: the tutorial with the wheel installed, the guides in a new project each."""

import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.pages import Project

DOCS = REPOSITORY / "docs"
TUTORIAL = DOCS / "tutorial.md"
SITES = {Path(folder) for folder in [*site.getsitepackages(), site.getusersitepackages()]}


@pytest.fixture
def installed(tmp_path):
    """The python of a venv with Queuetopia's wheel and this environment's Django in it."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    venv.create(tmp_path / ".venv", with_pip=False, symlinks=True)
    (packages,) = (tmp_path / ".venv").glob("lib/python*/site-packages")
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(packages)
    # A line in a .pth file is a folder to look into, whose own .pth files (an editable Queuetopia) are not read.
    (packages / "environment.pth").write_text("\n".join(folder for folder in sys.path if Path(folder) in SITES))
    return tmp_path / ".venv/bin/python"


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.capability("E1")
def test_the_tutorial_goes_as_it_says(installed, tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    project = Project(folder, installed, search=None)
    home = project.run(str(installed), "-c", "import queuetopia; print(queuetopia.__file__)")
    assert Path(home.strip()).is_relative_to(installed.parents[1])
    project.follow(TUTORIAL)
