"""All pictures of a study, in the order of the paper's figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.plots.study_forgetting import (
    courses_picture,
    edits_pictures,
    lives_picture,
    rates_picture,
    scatter_picture,
)
from intruscope.plots.study_merging import merging_pictures
from intruscope.plots.study_ranges import alpha_picture, equal_fit_picture, methods_picture
from intruscope.plots.study_sequence import sequence_pictures
from intruscope.plots.study_weights import (
    data_picture,
    depth_picture,
    epsilon_picture,
    profile_picture,
    similarity_picture,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from intruscope.plots.study_arms import Rows
    from intruscope.plots.study_merging import MergedSet
    from intruscope.plots.study_picture import Picture


def study_pictures(
    rows: Mapping[str, Rows], controls: Mapping[str, str], merged: Sequence[MergedSet] = ()
) -> list[Picture]:
    """Every picture that the rows have figures for.

    Args:
        rows: By recipe; runs that were left out among them are not drawn.
        controls: Name of every intervention, the edit first.
        merged: Sets of adapters with their merges.
    """

    def of(recipe: str) -> Rows:
        return rows.get(recipe, ())

    found = [
        similarity_picture(of("counts")),
        profile_picture(of("counts")),
        epsilon_picture(of("counts")),
        depth_picture(of("counts")),
        courses_picture(of("counts")),
        lives_picture(of("equal_fit")),
        equal_fit_picture(of("equal_fit")),
        rates_picture(of("rates")),
        scatter_picture(of("correlations")),
        *sequence_pictures(of("sequence")),
        *edits_pictures(of("interventions"), controls),
        alpha_picture(of("alpha")),
        data_picture(of("data_size"), of("counts")),
        methods_picture(of("methods")),
        *merging_pictures(merged),
    ]
    return [picture for picture in found if picture is not None]
