"""The file that tells whether a node of this host lives."""

import os
import shutil
import tempfile
import time
import uuid

import pytest

from queuetopia.node.node_file import OLD, NodeFile, is_alive, is_dead


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """The temporary folder's own folder of nodes."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"queuetopia-{os.getuid()}"


@pytest.mark.parametrize(
    "remove", [lambda folder: shutil.rmtree(folder), lambda folder: next(folder.iterdir()).unlink()]
)
def test_a_file_that_a_cleaner_has_removed_is_put_back(folder, remove):
    node_id = uuid.uuid4()
    file = NodeFile.create(node_id)
    remove(folder)
    assert not is_alive(node_id)

    file.keep()

    assert is_alive(node_id)
    before = file.descriptors()
    file.keep()
    assert file.descriptors() == before
    file.remove()
    assert list(folder.iterdir()) == []


def test_a_file_in_use_looks_used(folder):
    file = NodeFile.create(uuid.uuid4())
    [path] = folder.iterdir()
    os.utime(path, (1, 1))

    file.keep()

    assert path.stat().st_mtime > time.time() - 3600
    file.remove()


def test_files_of_nodes_killed_long_ago_are_removed(folder):
    ids = {name: uuid.uuid4() for name in ("killed", "just killed", "frozen")}
    nodes = {name: NodeFile.create(node_id) for name, node_id in ids.items()}
    paths = {name: next(folder.glob(f"{node_id}*")) for name, node_id in ids.items()}
    for name in ("killed", "frozen"):
        os.utime(paths[name], (1, time.time() - OLD - 60))
    for name in ("killed", "just killed"):
        os.close(nodes[name].descriptors()[0])

    new = NodeFile.create(uuid.uuid4())

    assert [name for name, path in paths.items() if path.exists()] == ["just killed", "frozen"]
    new.remove()
    nodes["frozen"].remove()


def test_without_a_temporary_folder_no_node_is_known_as_dead(monkeypatch):
    def no_folder():
        raise FileNotFoundError("no usable temporary directory")

    monkeypatch.setattr(tempfile, "gettempdir", no_folder)
    node_id = uuid.uuid4()
    file = NodeFile.create(node_id)
    assert file.descriptors() == []
    assert not is_dead(node_id)
    file.keep()
    file.remove()
