"""The storage contract as tests: every promise of ``backends/base.py``, for one backend on a real database.

Needs pytest and pytest-django, which Queuetopia itself does not install. A project holds its backend to it by::

    from queuetopia.backends.contract import BackendContract

    class TestOurBackend(BackendContract):
        pass

``toolkit`` has what a backend's further tests are written with, ``vendors`` what is asked in a vendor's own SQL.
"""

import pytest

TOPICS = (
    "breaking",
    "claiming",
    "limits",
    "keys",
    "racing",
    "recording",
    "corrupt",
    "verbs",
    "waking",
    "locking",
    "under_fire",
    "sweeping",
    "names",
    "independent",
    "due",
    "nodes",
    "sessions",
)
# Before they are imported: a failed assertion then shows both sides.
pytest.register_assert_rewrite(*(f"{__name__}.{topic}" for topic in (*TOPICS, "toolkit")))

from .breaking import Breaking  # noqa: E402
from .claiming import Claiming  # noqa: E402
from .corrupt import Corrupt  # noqa: E402
from .due import Due  # noqa: E402
from .independent import Independent  # noqa: E402
from .keys import Keyed  # noqa: E402
from .limits import Limited  # noqa: E402
from .locking import Locking  # noqa: E402
from .names import Names  # noqa: E402
from .nodes import Nodes  # noqa: E402
from .racing import Racing  # noqa: E402
from .recording import Recording  # noqa: E402
from .sessions import Sessions  # noqa: E402
from .sweeping import Sweeping  # noqa: E402
from .under_fire import UnderFire  # noqa: E402
from .verbs import Verbs  # noqa: E402
from .waking import Waking  # noqa: E402


class BackendContract(
    Breaking,
    Claiming,
    Limited,
    Keyed,
    Racing,
    Recording,
    Corrupt,
    Verbs,
    Waking,
    Locking,
    UnderFire,
    Sweeping,
    Names,
    Independent,
    Due,
    Nodes,
    Sessions,
):
    """Subclass it in a module of tests; override its fixture ``backend`` to open the session otherwise."""
