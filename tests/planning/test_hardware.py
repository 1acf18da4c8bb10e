"""Machines that can be planned for: the files of conf/hardware, and one's own."""

import pytest

from components.planning.hardware import FOLDER, Hardware, load, names


def test_every_file_is_a_machine_whose_numbers_each_have_a_source():
    assert {"a100_40", "a100_80", "h100", "h200"} <= set(names())
    for name in names():
        assert isinstance(load(name), Hardware)
        rows = [line for line in (FOLDER / f"{name}.yaml").read_text().splitlines() if not line.startswith("#")]
        assert all("#" in row for row in rows if not row.startswith(("name", "devices_per_node"))), name


def test_values_can_be_changed_and_a_file_of_ones_own_has_the_same_keys(tmp_path):
    machine = load("a100_80", {"price": 5.0, "mfu": 0.4})
    assert (machine.price, machine.mfu, machine.flops) == (5.0, 0.4, 312e12)
    own = tmp_path / "mine.yaml"
    own.write_text((FOLDER / "h100.yaml").read_text().replace("H100 SXM\n", "mine\n"))
    assert load(str(own)).name == "mine"


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("a1000", {}, "a100_80"),
        ("a100_80", {"prise": 1.0}, "prise"),
        ("a100_80", {"mfu": 1.5}, "hardware.mfu"),
        ("a100_80", {"flops": 0.0}, "hardware.flops"),
        ("a100_80", {"memory": "much"}, "hardware.memory"),
    ],
)
def test_what_does_not_fit_is_named(name, changes, said):
    with pytest.raises(ValueError, match=said):
        load(name, changes)


def test_across_nodes_all_network_cards_of_a_node_carry_what_enters_it_once():
    machine = load("a100_80")
    assert machine.link(8) == 300e9 and machine.link(9) == 8 * 25e9
    assert load("a100_80", {"network": 1e12}).link(16) == 300e9  # then the links inside are slower
