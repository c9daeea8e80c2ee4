"""The scheduler, by a clock that only visits move."""

from collections import Counter
from itertools import pairwise

import pytest

from intruscope.profiling.records import Phases, ProfileCell, Shape
from intruscope.profiling.rounds import OutOfTime, run_rounds

SHAPE = Shape(1, 2)


def cells(*names):
    return [ProfileCell(name, SHAPE) for name in names]


class Machine:
    """Visits take their seconds; the order is noted."""

    def __init__(self, seconds=1.0, dies=(), fails_at=None):
        self.time = 100.0
        self.order = []
        self.seconds = seconds
        self.dies, self.fails_at = dies, fails_at

    def clock(self):
        return self.time

    def visit(self, cell):
        self.order.append(cell.setting)
        self.time += self.seconds
        if cell.setting in self.dies and self.order.count(cell.setting) == self.fails_at:
            return None
        return Phases(float(len(self.order)), 0.0, 0.0)


def run(machine, chosen, *, budget, is_precise=lambda _: False, least=3, needed=("a",), seed=0, visit=None):
    return run_rounds(
        chosen,
        visit or machine.visit,
        clock=machine.clock,
        deadline=100.0 + budget,
        least=least,
        first_seconds=len(chosen) * machine.seconds,
        is_precise=is_precise,
        needed=needed,
        seed=seed,
    )


@pytest.mark.parametrize(("budget", "expected"), [(3.9, 0), (4.0, 1), (11.9, 2), (40.0, 10)])
def test_the_budget_is_kept_and_used(budget, expected):
    machine = Machine()
    found = run(machine, cells("a", "b", "c", "d"), budget=budget)
    assert (found.num_rounds, found.stopped) == (expected, "time")
    assert machine.time <= 100.0 + budget
    assert all(len(taken) == expected for taken in found.samples.values())


def test_a_round_that_will_not_fit_any_more_is_not_begun():
    """Rounds have become slower: what the last ones took counts, not what the first was thought to take."""
    machine = Machine()
    real = machine.visit

    def slower(cell):
        machine.seconds *= 1.1
        return real(cell)

    found = run(machine, cells("a", "b"), budget=30.0, visit=slower)
    assert found.num_rounds >= 5
    assert (
        100.0 + 30.0 - found.seconds_per_round <= machine.time <= 100.0 + 30.0 + 0.3 * found.seconds_per_round
    )
    assert len(machine.order) == 2 * found.num_rounds


def test_a_round_that_was_cut_off_counts_for_none():
    machine = Machine()
    real = machine.visit

    def cut(cell):
        if len(machine.order) == 7:
            raise OutOfTime
        return real(cell)

    found = run(machine, cells("a", "b", "c"), budget=1000.0, visit=cut)
    assert (found.num_rounds, found.stopped) == (2, "time")
    assert {len(taken) for taken in found.samples.values()} == {2}
    assert sorted(p.forward for taken in found.samples.values() for p in taken) == [1, 2, 3, 4, 5, 6]


def test_every_round_has_every_cell_once_in_an_order_of_its_own():
    machine = Machine()
    names = ("a", "b", "c", "d", "e")
    found = run(machine, cells(*names), budget=2000.0)
    rounds = [machine.order[i : i + 5] for i in range(0, len(machine.order), 5)]
    assert found.num_rounds == len(rounds) == 400
    assert all(sorted(each) == list(names) for each in rounds)
    # Nobody is first, last, or behind the same neighbour more often than chance has it (80 of 400, and 80).
    for place in range(5):
        counts = Counter(each[place] for each in rounds)
        assert min(counts.values()) > 50 and max(counts.values()) < 115
    pairs = Counter(pair for each in rounds for pair in pairwise(each))
    assert len(pairs) == 20 and max(pairs.values()) < 115


def test_the_order_is_the_seed_s():
    orders = []
    for seed in (0, 0, 1):
        machine = Machine()
        run(machine, cells("a", "b", "c", "d"), budget=40.0, seed=seed)
        orders.append(machine.order)
    assert orders[0] == orders[1] != orders[2]


def test_it_stops_when_the_intervals_are_narrow_but_not_before_the_least():
    seen = []

    def is_precise(samples):
        seen.append({len(taken) for taken in samples.values()})
        return len(seen) >= 3

    found = run(Machine(), cells("a", "b"), budget=1000.0, is_precise=is_precise, least=4)
    assert (found.num_rounds, found.stopped) == (6, "precise")
    assert seen == [{4}, {5}, {6}]


def test_a_setting_that_fails_is_left_out_and_others_go_on():
    machine = Machine(dies=("b",), fails_at=3)
    chosen = [*cells("a", "b", "c"), ProfileCell("b", Shape(1, 4))]
    found = run(machine, chosen, budget=50.0)
    assert found.stopped == "time" and found.num_rounds > 5
    # It fails in its third visit, in the second round, and is never asked again at any shape.
    assert machine.order.count("b") == 3
    assert {cell: len(taken) for cell, taken in found.samples.items() if cell.setting == "b"} == {
        ProfileCell("b", SHAPE): 1, ProfileCell("b", Shape(1, 4)): 1,
    }  # fmt: skip
    assert (
        len(found.samples[ProfileCell("a", SHAPE)])
        == len(found.samples[ProfileCell("c", SHAPE)])
        == found.num_rounds
    )


def test_without_what_all_are_compared_with_it_stops():
    machine = Machine(dies=("a",), fails_at=4)
    found = run(machine, cells("a", "b"), budget=1000.0)
    assert (found.num_rounds, found.stopped) == (3, "lost")
