"""docs/ does what it says: its commands and code are run, its tables are compared, its pages need no network."""

import configparser
import importlib.util
import json
import re
import shlex
import site
import subprocess
import sys
import venv
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import pytest
from django.core.management import BaseCommand, load_command_class

from queuetopia import conf, models
from queuetopia.node.supervisor import KILL_MARGIN
from tests.conftest import REPOSITORY
from tests.pages import SESSION, Block, Project, assert_printed, blocks

DOCS = REPOSITORY / "docs"
README = REPOSITORY / "README.md"
TUTORIAL = DOCS / "tutorial.md"
PRODUCTION = DOCS / "guides/production.md"
GUIDES = sorted(DOCS.glob("guides/*.md"))
ON_README = {
    "production",
    "runbook",
    "upgrading",
}  # guides for a project that is there; the others begin with its settings
RUN = {"diff", "pycon", "python", "sh", "text"}
SHOWN = {
    "console",
    "dockerfile",
    "ini",
    "sql",
    "text",
    "yaml",
}  # what no test runs; text is compared with what was printed
SITES = {Path(folder) for folder in [*site.getsitepackages(), site.getusersitepackages()]}

# What is run


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


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_a_guide_goes_as_it_says(page, tmp_path):
    project = Project.new(tmp_path)
    for block in blocks(README):
        if block.file and (page.stem in ON_README or block.file == "mysite/settings.py"):
            project.add(block)
    project.follow(page)


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_backend_of_the_guide_keeps_the_whole_contract(tmp_path):
    project = Project.new(tmp_path)
    for block in blocks(README):
        if block.file == "mysite/settings.py":
            project.add(block)
    project.follow(DOCS / "guides/backends.md")
    project.environment["QUEUETOPIA_HAMMER_SECONDS"] = "1"
    # A project may refuse marks that it does not know, and any warning.
    strict = ["--strict-markers", "--strict-config", "-W", "error", "--numprocesses=2"]
    pytest_ = [sys.executable, "-m", "pytest", "--ds=mysite.settings", "-q", *strict, "shop/test_backend.py"]
    assert " failed" not in project.run(*pytest_, timeout=500)


@pytest.mark.parametrize("page", [TUTORIAL, *GUIDES], ids=lambda page: page.stem)
class TestBlocks:
    def test_every_block_is_run_or_known_as_shown_only(self, page):
        found = blocks(page)
        assert {block.language for block in found} <= RUN | SHOWN
        assert len(found) * 2 == len(re.findall(r"^```", page.read_text(), re.MULTILINE))

    def test_every_python_block_names_its_file(self, page):
        assert [block.text for block in blocks(page) if block.language == "python" and not block.file] == []


# What is compared


def rows(page, heading=""):
    """Return the cells of every table row below the heading, without the tables' heads."""
    text = page.read_text()
    text = re.split(rf"^#+ {re.escape(heading)}$", text, flags=re.MULTILINE)[1] if heading else text
    text = re.split(r"^## ", text, flags=re.MULTILINE)[0] if heading else text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    heads = {index - 1 for index, line in enumerate(lines) if line.startswith("|--")}
    cells = [re.split(r"(?<!\\) ?\| ?", line)[1:-1] for line in lines]
    return [row for index, row in enumerate(cells) if index not in heads and not row[0].startswith("--")]


def code(cell):
    return re.findall(r"`([^`]+)`", cell)


def written(name, value):
    """Return a default as the pages write it."""
    if isinstance(value, float) and name not in ("backoff_factor", "jitter"):
        for unit, seconds in (("days", 86_400), ("h", 3_600), ("s", 1)):
            if value % seconds == 0 and (value >= 2 * seconds or unit == "s"):
                return f"{value / seconds:.0f} {unit}"
    if name == "LEASE":
        return f"{value} s"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:g}" if isinstance(value, float) else str(value)
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


class TestReference:
    def test_every_option_stands_there_with_its_default(self):
        page = {code(row[0])[0]: row for row in rows(DOCS / "reference/options.md", "Options")}
        assert {name: row[1] for name, row in page.items()} == {
            name: written(name, option.default) for name, option in conf.OPTIONS.items()
        }
        assert {name for name, row in page.items() if row[3] == "yes"} == set(conf.JOB_OPTIONS)

    def test_every_setting_stands_there_with_its_default(self):
        page = rows(DOCS / "reference/options.md", "Settings")
        assert {code(row[0])[0]: row[1] for row in page} == {
            name: written(name, value) for name, value in conf.SETTINGS.items()
        }

    @pytest.mark.parametrize("name", ["run_queuetopia", "queuetopia"])
    def test_every_option_of_a_command_stands_there(self, name):
        page = {code(row[0])[0] for row in rows(DOCS / "reference/commands.md", f"`{name}`") if "--" in row[0]}
        assert page == {option for parser in parsers(name) for option in own_options(parser)}

    def test_every_verb_stands_there(self):
        page = [row[0].strip("`") for row in rows(DOCS / "reference/commands.md", "`queuetopia`")]
        verbs = list(subparsers(parser_of("queuetopia")))
        assert [name for name in page if name in verbs] == verbs

    def test_an_option_stands_beside_the_verbs_that_have_it(self):
        verbs = subparsers(parser_of("queuetopia"))
        for option, of, *_ in [row for row in rows(DOCS / "reference/commands.md") if row[0].startswith("`--")]:
            if of == "all" or code(of):
                having = [name for name, parser in verbs.items() if code(option)[0] in own_options(parser)]
                assert having == (list(verbs) if of == "all" else code(of)), option

    @pytest.mark.parametrize("model", [models.Job, models.Queue, models.JobEvent], ids=lambda model: model.__name__)
    def test_every_field_stands_there(self, model):
        text = (DOCS / "reference/jobs.md").read_text().split(f"\n## {model.__name__}\n")[1].split("\n## ")[0]
        fields = {field.name for field in model._meta.get_fields()} - ({"id"} if model is models.JobEvent else set())
        assert fields - set(code(text)) == set()

    def test_every_system_check_stands_there(self):
        source = "".join((REPOSITORY / "queuetopia" / path).read_text() for path in ("checks.py", "backends/checks.py"))
        page = [code(row[0])[0].removeprefix("queuetopia.") for row in rows(DOCS / "reference/checks.md")]
        assert page == sorted(set(re.findall(r'"([EW]\d{3})"', source)))

    def test_every_log_record_of_the_page_is_written_somewhere(self):
        source = "".join(path.read_text() for path in (REPOSITORY / "queuetopia").rglob("*.py"))
        records = [record for row in rows(PRODUCTION, "Logging") for record in code(row[1])]
        assert len(records) > 10
        # "job halted" and "job skipped" are put together; the tutorial shows one of them.
        assert [text for text in records if text not in source and not text.startswith("job ")] == []


def parser_of(name):
    return load_command_class("queuetopia", name).create_parser("manage.py", name)


def subparsers(parser):
    return next((action.choices for action in parser._actions if action.dest == "verb"), {})


def parsers(name):
    return list(subparsers(parser_of(name)).values()) or [parser_of(name)]


def own_options(parser):
    """Return the long options that are not Django's."""
    django = {
        option for action in BaseCommand().create_parser("manage.py", "")._actions for option in action.option_strings
    }
    found = {option for action in parser._actions for option in action.option_strings}
    return {option for option in found - django if option.startswith("--")}


class TestProduction:
    """Whoever stops a node has to wait for longer than its grace time, and the margin until the supervisor kills."""

    def shown(self, language, having=""):
        (text,) = [block.text for block in blocks(PRODUCTION) if block.language == language and having in block.text]
        return text

    def options(self, words):
        command = words[words.index("run_queuetopia") + 1 :]
        return parser_of("run_queuetopia").parse_args(command)

    def test_the_systemd_unit(self):
        unit = configparser.ConfigParser(interpolation=None)
        unit.optionxform = str
        unit.read_string(self.shown("ini", having="[Unit]"))
        service = unit["Service"]
        assert service.getint("TimeoutStopSec") > self.options(shlex.split(service["ExecStart"])).grace + KILL_MARGIN
        assert service["KillMode"] == "mixed"

    def test_the_dockerfile(self):
        command = re.search(r"^CMD (.*)$", self.shown("dockerfile"), re.MULTILINE)[1]
        grace = self.options(json.loads(command)).grace
        (stop_timeout,) = re.findall(r"--stop-timeout (\d+)", PRODUCTION.read_text())
        assert int(stop_timeout) > grace + KILL_MARGIN

    def test_the_kubernetes_deployment(self):
        text = self.shown("yaml")
        grace = self.options(json.loads(re.search(r"command: (.*)$", text, re.MULTILINE)[1])).grace
        (period,) = re.findall(r"terminationGracePeriodSeconds: (\d+)", text)
        assert int(period) > grace + KILL_MARGIN


# What is built


class Loads(HTMLParser):
    """Collects what a page makes a browser fetch."""

    def __init__(self, page):
        super().__init__()
        self.found = set()
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag != "a":
            self.found |= {attributes[name] for name in ("src", "href", "srcset", "data") if attributes.get(name)}


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    """The folder of the pages as they are built in CI."""
    folder = tmp_path_factory.mktemp("html")
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-d", f"{folder}/doctrees"]
    built = subprocess.run([*build, DOCS, folder / "html"], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder / "html"


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("sphinx"), reason="needs: pip install --group docs")
class TestBuiltPages:
    @pytest.mark.capability("W13", "E29")
    def test_every_page_is_in_the_table_of_contents(self, html):
        pages = {path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md")}
        assert {"how-it-works.html", "contributing.html", "guides/production.html"} <= set(map(str, pages))
        listed = set(re.findall(r'<a class="reference internal" href="([^"#]+)"', (html / "index.html").read_text()))
        assert {str(page) for page in pages} - listed == {"index.html"}

    def test_no_page_loads_anything_from_elsewhere(self, html):
        pages = sorted(html.rglob("*.html"))
        loaded = {(page.name, address) for page in pages for address in Loads(page.read_text()).found}
        assert len(loaded) > len(pages)
        assert {pair for pair in loaded if re.match(r"(\w+:)?//", pair[1])} == set()

    def test_no_style_loads_anything_from_elsewhere(self, html):
        styles = "".join(path.read_text() for path in html.rglob("*.css"))
        assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:\w+:)?//[^)\"']*", styles) == []


def test_every_link_to_a_file_leads_to_something():
    pages = [*DOCS.rglob("*.md"), REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "SECURITY.md"]
    links = [(page, target) for page in pages for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())]
    assert links
    assert [(str(page), target) for page, target in links if not (page.parent / target).exists()] == []


@pytest.mark.capability("W13", "E29")
@pytest.mark.parametrize("name", ["LICENSE", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "docs/how-it-works.md"])
def test_the_project_has_its_papers(name):
    assert len((REPOSITORY / name).read_text().splitlines()) > 10


class TestPagesAreCompared:
    """What the other tests rely on has to be able to say no."""

    PRINTED = "started node=vm:17\n2026-11-22 08:12:01,123 job 5 failed,  next in 3 s\nended\n"

    @pytest.mark.parametrize(
        "expected",
        [
            "ended",
            "started node=…\nended",
            "2026-01-01 00:00:00,001 job 5 failed, next in 12 s",
            "started …\n\n  ended",
        ],
    )
    def test_what_was_printed_is_found(self, expected):
        assert_printed(expected, self.PRINTED)

    @pytest.mark.parametrize(
        "expected",
        ["end", "ended\nstarted node=…", "2026-11-22 08:12:01,123 job 6 failed, next in 3 s", "ended\nended"],
    )
    def test_what_was_not_printed_is_missed(self, expected):
        with pytest.raises(AssertionError, match="not there"):
            assert_printed(expected, self.PRINTED)

    @pytest.mark.parametrize("lines", ["-two\n+three\n", "-one\n+three\n"])
    def test_a_change_of_what_does_not_stand_there_once_is_refused(self, lines, tmp_path):
        (tmp_path / "a.py").write_text("one\none\n")
        with pytest.raises(AssertionError, match="exactly once"):
            Project(tmp_path).change(Block("diff", f"--- a.py\n{lines}"))

    @pytest.mark.parametrize("shown", ["3\n", "Traceback (most recent call last):\n    ...\nTypeError: no\n"])
    def test_another_answer_than_the_one_shown_is_a_failure(self, shown, tmp_path):
        session = [sys.executable, "-c", SESSION]
        with pytest.raises(AssertionError, match="Expected"):
            Project(tmp_path).run(*session, typed=f">>> 1 + 1\n{shown}")

    def test_only_the_rows_below_a_heading_are_compared(self, tmp_path):
        page = tmp_path / "page.md"
        page.write_text("# Page\n\n## One\n\n| option | default |\n|---|---|\n| `a` | 1 |\n\n## Two\n\n| `b` | 2 |\n")
        assert rows(page, "One") == [["`a`", "1"]]
