"""The same as drain, by several nodes that share the machine: they must not be slower than one."""

from .drain import PROCESSES, drain_by_nodes
from .figures import Figure
from .fresh import fresh_database

NODES = (2, 4)


def measure(size):
    with fresh_database():
        alone = drain_by_nodes(size)
    figures = []
    for nodes in NODES:
        with fresh_database():
            value = drain_by_nodes(size, nodes, max(1, PROCESSES // nodes))
        figures.append(
            Figure(f"drain, {nodes} nodes", "jobs/s", value, alone, goal=1, goal_of="ratio", more_is_better=True)
        )
    return figures
