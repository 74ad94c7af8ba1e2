"""Where the settings come from: a class of django-configurations, ``settings.configure()``, a special manage.py."""

import os
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.processes.waiting import wait_for_all
from tests.testapp.queues import LedgerQueue

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True, databases=["default", "other"])]

CONFIGURATIONS = """
import importlib, os, django

def setup():
    module = importlib.import_module(os.environ["DJANGO_SETTINGS_MODULE"])
    chosen = getattr(module, os.environ["DJANGO_CONFIGURATION"])
    vars(module).update({name: value for name, value in vars(chosen).items() if name.isupper()})
    django.setup()
"""
CLASS = """
from tests import settings
Dev = type("Dev", (), {name: value for name, value in vars(settings).items() if name.isupper()})
"""
NEEDS_MANAGE = "import builtins\nfrom tests.settings import *\nbuiltins.set_up_by_manage\n"


def run(nodes, folder, before, **environment):
    """Start a node with a manage.py of its own."""
    (folder / "manage.py").write_text(
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n{before}\n"
        "from django.core.management import execute_from_command_line as execute\n"
        f"execute(['manage.py', 'run_queuetopia', '--processes', '1', {LedgerQueue.scope!r}])\n"
    )
    command = [sys.executable, str(folder / "manage.py")]
    return nodes.run(command, env={"PYTHONPATH": os.pathsep.join([str(folder), str(REPOSITORY)]), **environment})


def test_settings_in_a_class_of_django_configurations(nodes, tmp_path):
    (tmp_path / "configurations.py").write_text(CONFIGURATIONS)
    (tmp_path / "shop_settings.py").write_text(CLASS)
    LedgerQueue.create_job("a", "noop")

    before = "import configurations; configurations.setup()"
    run(nodes, tmp_path, before, DJANGO_SETTINGS_MODULE="shop_settings", DJANGO_CONFIGURATION="Dev")

    wait_for_all()


def test_a_project_without_a_settings_module_is_refused_at_once(nodes, tmp_path):
    before = (
        "import os, django\n"
        "from django.conf import settings\n"
        "from tests import settings as theirs\n"
        "settings.configure(**{name: value for name, value in vars(theirs).items() if name.isupper()})\n"
        "os.environ.pop('DJANGO_SETTINGS_MODULE')\n"
    )
    node = run(nodes, tmp_path, before)

    assert node.wait() == 1
    assert node.log().startswith("CommandError: A node starts new programs, which find your settings by")
    assert len(node.log().splitlines()) == 1


def test_what_only_manage_does_is_told_and_no_crash_loop(nodes, tmp_path):
    (tmp_path / "shop_settings.py").write_text(NEEDS_MANAGE)
    before = "import builtins; builtins.set_up_by_manage = True"
    node = run(nodes, tmp_path, before, DJANGO_SETTINGS_MODULE="shop_settings")

    assert node.wait() == 1
    assert node.log().count("move what your manage.py does besides into the settings") == 1
