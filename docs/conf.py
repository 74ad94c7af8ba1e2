"""Sphinx: ``sphinx-build -W --keep-going -b html docs docs/_build``. Nothing here or in the pages needs the network."""

import re
import sys
from pathlib import Path

import django
from django.conf import settings

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

# For autodoc, which imports the modules.
settings.configure(
    INSTALLED_APPS=["queuetopia"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    USE_TZ=True,
)
django.setup()

import queuetopia  # noqa: E402

project = "Queuetopia"
author = "Queuetopia contributors"
project_copyright = "2026, Queuetopia contributors"
release = version = queuetopia.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"Queuetopia {release}"
html_static_path = ["_static"]
html_css_files = ["queuetopia.css"]
nitpicky = True

autodoc_member_order = "bysource"
autodoc_typehints = "none"

ARGUMENT = re.compile(r"(\w+(?:, \w+)*): (.*)")


def as_list(app, what, name, obj, options, lines):
    """Make a bullet of each "argument: what it means" of our docstrings, with the lines that go on with it."""
    listed, in_list = [], False
    for line in lines:
        named = ARGUMENT.fullmatch(line)
        if named and (in_list or not listed or not listed[-1].strip()):
            names = ", ".join(f"**{argument}**" for argument in named[1].split(", "))
            listed.append(f"- {names}: {named[2]}")
            in_list = True
        elif in_list and line.strip():
            listed.append(f"  {line}")
        else:
            in_list = False
            listed.append(line)
    lines[:] = listed


def setup(app):
    app.connect("autodoc-process-docstring", as_list)
