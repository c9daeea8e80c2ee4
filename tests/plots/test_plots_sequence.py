"""Pictures of a chain: what its axes say."""

from __future__ import annotations

import pytest

from intruscope.plots.sequence import ChainLine, comparison_figure


@pytest.mark.parametrize("most", [0, 1, 3, 9, 480])
def test_intruders_of_a_chain_are_counted_in_whole_ones(most):
    three = [(0.5, 0.4, 0.6)] * 3
    lines = [ChainLine(label="lora", average=tuple(three), kept=tuple(three[1:]), intruders=(0, 0, most))]
    axes = comparison_figure(["a", "b", "c"], lines).axes[2]
    ticks = axes.get_yticks()
    assert len(ticks) >= 3
    assert all(tick == round(tick) for tick in ticks)
