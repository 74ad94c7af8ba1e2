"""How many CPUs a process may use."""

import os

import pytest

from queuetopia.node import cpus
from queuetopia.node.cpus import usable_cpus


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine with 64 CPUs, all of which the process may use."""
    monkeypatch.setattr(os, "process_cpu_count", lambda: 64, raising=False)


def root(folder, groups, files):
    files = {"proc/self/cgroup": groups, **files}
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return str(folder)


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 64), ("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1), ("9900000 100000", 64)],
)
def test_a_containers_limit_counts(tmp_path, quota, expected):
    assert usable_cpus(root(tmp_path, "0::/\n", {"sys/fs/cgroup/cpu.max": quota})) == expected


def test_the_narrowest_of_the_groups_around_a_process_counts(tmp_path):
    files = {
        "sys/fs/cgroup/pod/cpu.max": "300000 100000",
        "sys/fs/cgroup/pod/shop/cpu.max": "500000 100000",
    }
    assert usable_cpus(root(tmp_path, "0::/pod/shop\n", files)) == 3


def test_a_group_whose_path_a_container_does_not_see(tmp_path):
    files = {"sys/fs/cgroup/cpu.max": "400000 100000"}
    assert usable_cpus(root(tmp_path, "0::/system.slice/docker-1.scope\n", files)) == 4


@pytest.mark.parametrize(("quota", "expected"), [("-1", 64), ("250000", 3)])
def test_limits_of_the_first_version(tmp_path, quota, expected):
    files = {"sys/fs/cgroup/cpu/shop/cpu.cfs_quota_us": quota, "sys/fs/cgroup/cpu/shop/cpu.cfs_period_us": "100000\n"}
    assert usable_cpus(root(tmp_path, "4:memory:/shop\n3:cpu,cpuacct:/shop\n", files)) == expected


@pytest.mark.parametrize("groups", ["", "0::/\n"])
def test_without_a_limit_the_process_may_use_what_it_is_scheduled_on(tmp_path, groups):
    assert usable_cpus(root(tmp_path, groups, {})) == 64


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs Linux")
def test_affinity_counts_where_python_does_not_know_it(monkeypatch):
    monkeypatch.delattr(os, "process_cpu_count")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5})
    assert cpus.usable_cpus("/nowhere") == 2
