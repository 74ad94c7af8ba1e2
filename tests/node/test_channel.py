"""What scheduler and worker share."""

import os
import subprocess
import sys
import tempfile

import pytest

from queuetopia.channel import Board

WITHOUT_SPACE = """
import os, resource
from queuetopia.channel import Board

if {without_memfd}:
    del os.memfd_create
resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16))
try:
    Board.create_file(1)
except OSError as exc:
    print("refused:", exc)
"""


@pytest.mark.parametrize("without_memfd", [True, False])
def test_a_board_without_space_is_an_error_and_no_signal(without_memfd):
    code = WITHOUT_SPACE.format(without_memfd=without_memfd and hasattr(os, "memfd_create"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("refused: ")


@pytest.mark.parametrize("without_memfd", [True, False])
def test_a_board_shows_what_runs(monkeypatch, without_memfd):
    if without_memfd:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    with Board.create_file(2) as file:
        ours, theirs = Board(file.fileno(), 2), Board(file.fileno(), 2)
    theirs.start(1, 7)
    ours.deadline = 12.5
    assert list(ours.running()) == [7]
    assert theirs.deadline == 12.5
    theirs.clear(1)
    assert ours.running() == {}
    ours.close()
    theirs.close()


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")
def test_a_board_needs_no_temporary_folder(monkeypatch):
    def no_folder():
        raise FileNotFoundError("no usable temporary directory")

    monkeypatch.setattr(tempfile, "gettempdir", no_folder)
    Board.create_file(1).close()
