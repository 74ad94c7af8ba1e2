"""Pages of documentation as programs: what they show is done in a new Django project, from top to bottom.

=========  ==============================================================================================
python     its first line names a file: the block is added to it; "# shop/queues.py, the whole file" replaces it
diff       the same for some lines of a file: those with ``-`` give way to those with ``+``
sh         is run, each line has to succeed
text       what the last ``sh`` block printed, with ``…`` for what differs each time; times may differ anyway
pycon      a session of ``manage.py shell``: every answer has to be the one shown
=========  ==============================================================================================

Other blocks (console, ini, yaml, …) are shown only.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import django

from tests.conftest import REPOSITORY

FENCED = re.compile(r"^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (?P<file>[\w/]+\.py)(?P<whole>, the whole file)?\n")
CHANGED = re.compile(r"--- (?P<file>[\w/]+\.py)\n")
TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:[.,]\d+)?(?:[+-]\d\d:\d\d)?|\b\d+(?:\.\d+)? ?s\b")

SESSION = """
import doctest, sys
session = doctest.DocTestParser().get_doctest(sys.stdin.read(), {}, "session", None, 0)
runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
sys.exit(runner.run(session).failed)
"""


class Block(NamedTuple):
    language: str
    text: str

    @property
    def file(self):
        """The file that a python block belongs to, None if its first line names none."""
        named = FILE.match(self.text) if self.language == "python" else None
        return named and named["file"]

    @property
    def code(self):
        return FILE.sub("", self.text, count=1)


def blocks(page):
    return [Block(match["language"], match["text"]) for match in FENCED.finditer(page.read_text())]


class Project:
    """A folder in which commands are run by ``python``, which finds Queuetopia in ``search`` or by itself."""

    def __init__(self, folder, python=sys.executable, search: Path | None = REPOSITORY):
        self.folder, self.python_path = folder, Path(python)
        ours = ("DJANGO_SETTINGS_MODULE", "PYTHONPATH", "DATABASE_URL", "OTHER_DATABASE_URL")
        self.environment = {name: value for name, value in os.environ.items() if name not in ours} | {
            "PATH": os.pathsep.join([str(self.python_path.parent), os.environ["PATH"]]),
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "error",
        }
        if search is not None:
            self.environment["PYTHONPATH"] = str(search)

    @classmethod
    def new(cls, folder):
        """Make the project of README and the guides: ``startproject mysite`` and ``startapp shop``."""
        project = cls(folder)
        project.run(sys.executable, "-m", "django", "startproject", "mysite", ".")
        project.manage("startapp", "shop")
        if django.VERSION < (6, 1):  # Later projects have it from startproject.
            console = '\nEMAIL_BACKEND = "django.core.mail.backends.console.EmailBackend"\n'
            project.add(Block("python", f"# mysite/settings.py{console}"))
        return project

    def add(self, block):
        """Write a python block into its file."""
        whole = FILE.match(block.text)["whole"]
        with open(self.folder / block.file, "w" if whole else "a") as file:
            file.write(block.code if whole else "\n" + block.code)

    def change(self, block):
        """Apply a diff block; the lines it removes must stand in the file exactly once."""
        path = self.folder / CHANGED.match(block.text)["file"]
        lines = block.text.splitlines(keepends=True)[1:]
        old, new = ("".join(line[1:] for line in lines if line[0] == sign) for sign in "-+")
        assert path.read_text().count(old) == 1, f"{path} has not exactly once:\n{old}"
        path.write_text(path.read_text().replace(old, new))

    def manage(self, *arguments, typed=""):
        return self.run(str(self.python_path), "manage.py", *arguments, typed=typed)

    def python(self, code):
        return self.manage("shell", "--verbosity=0", "--command", code).strip()

    def run(self, *command, typed="", timeout=60):
        """Run a command that has to succeed; return what it printed."""
        result = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            input=typed,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        assert result.returncode == 0, f"{command}\n{result.stdout}"
        return result.stdout

    def follow(self, page):
        """Run what the page shows; raise AssertionError where the output differs."""
        printed = ""
        for block in blocks(page):
            match block.language:
                case "python":
                    self.add(block)
                case "diff":
                    self.change(block)
                case "sh":
                    printed = self.run("bash", "-euo", "pipefail", "-c", block.text)
                case "text":
                    assert_printed(block.text, printed)
                case "pycon":
                    self.manage("shell", "--verbosity=0", "--command", SESSION, typed=block.text)


def assert_printed(expected, printed):
    """The lines of ``expected`` stand in ``printed``, in their order; spaces and times may differ."""
    lines = iter(printed.splitlines())
    for wanted in filter(None, map(str.strip, expected.splitlines())):
        pattern = re.compile(pattern_of(wanted))
        assert any(pattern.fullmatch(line.strip()) for line in lines), f"not there: {wanted}\n\n{printed}"


def pattern_of(wanted):
    """Return the regular expression of a line of the page."""
    parts = []
    for piece in re.split(f"(…|{TIME.pattern})", wanted):
        if piece == "…":
            parts.append(".*")
        elif TIME.fullmatch(piece):
            parts.append(r"[-+\d:,. ]+" + ("s" if piece.endswith("s") else ""))
        else:
            parts.append(r"\s+".join(re.escape(word) for word in re.split(r"\s+", piece)))
    return "".join(parts)
