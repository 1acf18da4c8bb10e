"""Memory that is left, read from files like the system's."""

import math

from components.system.memory import available

MEMINFO = "MemTotal:       24000000 kB\nMemFree:         1000000 kB\nMemAvailable:    8000000 kB\n"


def place(root, **files: str):
    for name, text in files.items():
        file = root / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def test_without_a_limit_it_is_what_the_machine_has(tmp_path):
    unlimited = {"sys__fs__cgroup__memory.max": "max\n", "sys__fs__cgroup__memory.current": "5000\n"}
    assert available(place(tmp_path, proc__meminfo=MEMINFO, **unlimited)) == 8_000_000 * 1024


def test_a_control_groups_limit_counts_less_what_it_uses_without_cached_files(tmp_path):
    two = {
        "sys__fs__cgroup__memory.max": "4000000\n",
        "sys__fs__cgroup__memory.current": "3000000\n",
        "sys__fs__cgroup__memory.stat": "anon 2500000\ninactive_file 500000\n",
    }
    assert available(place(tmp_path, proc__meminfo=MEMINFO, **two)) == 1_500_000
    one = {
        "sys__fs__cgroup__memory__memory.limit_in_bytes": "3000000\n",
        "sys__fs__cgroup__memory__memory.usage_in_bytes": "2000000\n",
        "sys__fs__cgroup__memory__memory.stat": "inactive_file 1\ntotal_inactive_file 200000\n",
    }
    assert available(place(tmp_path, **one)) == 1_200_000


def test_a_system_that_does_not_say_has_no_end(tmp_path):
    assert available(tmp_path) == math.inf


def test_this_machine_has_some():
    assert available() > 0
