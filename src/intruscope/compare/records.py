"""What a comparison reports, as frozen records; :meth:`CompareReport.save` writes them as the JSON schema.

Quantities and their controls only: nothing here says whether to merge. A value that does not exist is None;
no field is ever NaN or infinite.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from intruscope.compare.settings import CompareSettings  # noqa: TC001 - decoding reads the hints
from intruscope.forgetting.intervals import Interval  # noqa: TC001 - likewise
from intruscope.records.report import Report
from intruscope.weights.matrices import Finding, Scope  # noqa: TC001 - likewise

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from intruscope.records.tables import Cell

SCHEMA = "intruscope.compare/1"

COLUMNS: dict[str, str] = {
    "a": "string",
    "b": "string",
    "matrix": "string",
    "kind": "string",
    "layer": "int64",
    "cosine": "float64",
    "cosine_random_spread": "float64",
    "cosine_shared_a_spread": "float64",
    "energy_a": "float64",
    "energy_b": "float64",
    "left_overlap": "float64",
    "left_overlap_random": "float64",
    "right_overlap": "float64",
    "right_overlap_random": "float64",
    "smallest_left_angle": "float64",
    "smallest_left_angle_random": "float64",
    "smallest_right_angle": "float64",
    "smallest_right_angle_random": "float64",
    "sign_conflict": "float64",
    "sign_conflict_error": "float64",
    "sign_conflict_random_spread": "float64",
    "sign_conflict_shared_a_spread": "float64",
    "num_shared_intruders": "int64",
}
"""Column names in order, with their Arrow types: one row for each pair of fine-tunes and each matrix that
both change."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One of the fine-tunes.

    Attributes:
        label: Its short, unique name in this report.
        name: As the user named it.
        kind: Title of the adapter kind, or ``full checkpoint``.
        num_matrices: Matrices that it changes and that were compared.
        energy: Σ‖ΔW‖_F² over these.
        energy_fraction: Its share of the energies of all fine-tunes; None if all are zero.
        share: Its share in an equal-weight merge, Σ⟨ΔW, S⟩ / Σ‖S‖² with S the sum of all updates. The shares
            add up to 1; one is negative where a fine-tune is undone by the others. None if the sum is zero.
    """

    label: str
    name: str
    kind: str
    num_matrices: int
    energy: float
    energy_fraction: float | None
    share: float | None


@dataclass(frozen=True, kw_only=True)
class PairModule:
    """Two updates of one matrix.

    A field with ``random`` in its name is what updates with the same singular values and random directions on
    both sides give; one with ``shared_a`` is what they give if they keep their row spaces and only their left
    directions are random, like adapters that started from the same A and learned unrelated B. The cosine is 0
    and the sign conflict ½ on average under both, with the standard deviation that ``spread`` states.

    Attributes:
        name: Name of the matrix.
        cosine: ⟨ΔW_a, ΔW_b⟩ / (‖ΔW_a‖‖ΔW_b‖), in [-1, 1]; None if either is zero, as for everything else.
        cosine_random_spread: See above.
        cosine_shared_a_spread: See above; None for an update that is not low-rank.
        left_angles: Principal angles between the column spaces (output side), radians, ascending.
        right_angles: The same between the row spaces (input side).
        left_overlap: Mean squared cosine of ``left_angles``: the share of the smaller space that lies in the
            larger one, in [0, 1].
        left_overlap_random: Its mean for random spaces, max(r_a, r_b) / out.
        right_overlap, right_overlap_random: The same of the row spaces.
        smallest_left_angle_random: Mean of the smallest angle of random spaces, radians.
        smallest_right_angle_random: The same of the row spaces.
        sign_conflict: Share of the entries in which the two updates have opposite signs; every entry counts
            alike, and those that are zero in either do not count.
        sign_conflict_error: Standard error of the sample that it is from; 0 where every entry was counted.
        sign_conflict_random_spread: See above; large matrices assumed.
        sign_conflict_shared_a_spread: See above.
        num_shared_intruders: Intruders that both have: left vectors whose |cosine| is above √½; None without
            a base.
    """

    name: str
    cosine: float | None
    cosine_random_spread: float
    cosine_shared_a_spread: float | None
    left_angles: tuple[float, ...]
    right_angles: tuple[float, ...]
    left_overlap: float | None
    left_overlap_random: float | None
    right_overlap: float | None
    right_overlap_random: float | None
    smallest_left_angle_random: float | None
    smallest_right_angle_random: float | None
    sign_conflict: float | None
    sign_conflict_error: float | None
    sign_conflict_random_spread: float
    sign_conflict_shared_a_spread: float | None
    num_shared_intruders: int | None = None


@dataclass(frozen=True, kw_only=True)
class PairReport:
    """Two fine-tunes.

    Attributes:
        a, b: Their labels.
        cosine: Of the whole updates, all matrices as one long vector: Σ⟨ΔW_a, ΔW_b⟩ / √(Σ‖ΔW_a‖² Σ‖ΔW_b‖²). A
            matrix that only one of them changes counts in its norm. None if either is zero.
        cosine_random_spread: Standard deviation of the cosine for random directions; see :class:`PairModule`.
        cosine_shared_a_spread: The same with the row spaces kept; None where a matrix has no such figure.
        norm_ratio: √(Σ‖ΔW_b‖² / Σ‖ΔW_a‖²); None if either is zero.
        left_overlap, right_overlap: Means over the matrices.
        left_overlap_random, right_overlap_random: Means over the matrices.
        sign_conflict: Share over the entries of all matrices.
        sign_conflict_error: Standard error of it.
        sign_conflict_random_spread, sign_conflict_shared_a_spread: Standard deviations around ½.
        num_shared_intruders: Sum over the matrices; None without a base.
        modules: The matrices that both change.
    """

    a: str
    b: str
    cosine: float | None
    cosine_random_spread: float | None
    cosine_shared_a_spread: float | None
    norm_ratio: float | None
    left_overlap: float | None
    left_overlap_random: float | None
    right_overlap: float | None
    right_overlap_random: float | None
    sign_conflict: float | None
    sign_conflict_error: float | None
    sign_conflict_random_spread: float | None
    sign_conflict_shared_a_spread: float | None
    num_shared_intruders: int | None
    modules: tuple[PairModule, ...]


@dataclass(frozen=True, kw_only=True)
class IntruderCount:
    """Intruders of one model.

    Attributes:
        num_intruders: Leading left singular vectors that match none of the base.
        num_undecided: Vectors that could not be decided (borderline or degenerate).
        energy: Σσ² of the intruders.
        num_new: Those of a merge that no part had: at most half of their squared length lies in the span of
            the parts' intruders. None for a part.
        new_energy: Σσ² of these.
    """

    num_intruders: int
    num_undecided: int
    energy: float
    num_new: int | None = None
    new_energy: float | None = None


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """Intruders of the fine-tunes, of their merge, and of its controls, in one matrix or in all.

    Attributes:
        num_vectors: Number of leading vectors that were examined in each model.
        base_energy: Σ‖W_base‖_F² of the matrices.
        parts: Each fine-tune alone; none where it leaves the matrix as it is.
        merge: The base plus ``weight`` times the sum of the updates.
        random_parts: Control: each update with the same singular values and random directions, alone.
        random_merge: The merge of these; its new intruders are those that no random part had.
        equal_norm: Control: the sum of the updates, shrunk as a whole to the root-mean-square norm of the
            parts' updates. It moves the base as far as one part does.
    """

    num_vectors: int
    base_energy: float
    parts: tuple[IntruderCount, ...]
    merge: IntruderCount
    random_parts: tuple[IntruderCount, ...]
    random_merge: IntruderCount
    equal_norm: IntruderCount


@dataclass(frozen=True, kw_only=True)
class MergeModule:
    """The sum of all updates of one matrix.

    Attributes:
        name: Name of the matrix.
        kind: ``q``, ``k``, ``v``, ``up`` and so on.
        layer: Index of the block; None outside the blocks.
        scope: ``paper`` for linear layers of the blocks; else ``other``.
        shape: (out, in).
        energies: ‖ΔW_t‖_F² of each fine-tune; 0 where it leaves the matrix as it is.
        shares: ⟨ΔW_t, S⟩ / ‖S‖² of each, S the sum of the updates; they add up to 1. None if S is zero.
        energy_ratio: ‖S‖_F² / Σ‖ΔW_t‖_F²: 1 for orthogonal updates, and on average for random ones; T for T
            equal ones; below 1 where they cancel. None if all are zero.
        inflation: Largest singular value of S over the largest of any single update; None if all are zero.
        inflation_random: Its mean if the updates keep their singular values and have random directions.
        inflation_shared_a: Its mean if they keep their row spaces too; None unless all are low-rank.
        preflight: Intruders; None without a base, and outside the paper's scope.
    """

    name: str
    kind: str
    layer: int | None
    scope: Scope
    shape: tuple[int, int]
    energies: tuple[float, ...]
    shares: tuple[float, ...] | None
    energy_ratio: float | None
    inflation: float | None
    inflation_random: float | None
    inflation_shared_a: float | None
    preflight: Preflight | None = None


@dataclass(frozen=True, kw_only=True)
class MeasuredModel:
    """Forgetting of one model.

    Attributes:
        name: Label of a fine-tune; ``merge`` for the weighted sum, ``sum`` for the sum at weight 1.
        part: Whether it is one of the fine-tunes.
        loss: On the text, nats per token.
        forgetting: Its loss minus the base's, paired.
        merge_difference: The merge's loss minus its loss, paired; None for the merge itself.
    """

    name: str
    part: bool
    loss: Interval
    forgetting: Interval
    merge_difference: Interval | None


@dataclass(frozen=True, kw_only=True)
class MergeForgetting:
    """Forgetting of the merge beside its parts and their plain sum, on one text.

    Attributes:
        text: Names of the text's sources.
        sha256: Of the text.
        protocol: How losses are computed, with a version.
        num_sequences: Number of sequences.
        num_tokens: Number of scored tokens.
        base_loss: Loss of the base, nats per token.
        models: The fine-tunes in order, then the merge, then the sum.
    """

    text: str
    sha256: str
    protocol: str
    num_sequences: int
    num_tokens: int
    base_loss: Interval
    models: tuple[MeasuredModel, ...]


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """What adding the updates up does.

    Attributes:
        weight: Weight of each fine-tune in the merge whose intruders and forgetting are reported.
        energy_ratio: Σ‖S‖² / ΣΣ‖ΔW_t‖² over all matrices; see :class:`MergeModule`.
        median_inflation: Median of ``inflation`` over the matrices that several fine-tunes change.
        max_inflation: The largest.
        median_inflation_random, median_inflation_shared_a: Medians of the controls.
        modules: Every matrix that any of them changes.
        preflight: Sums over the paper's scope; None without a base.
        forgetting: None unless a text was given.
    """

    weight: float
    energy_ratio: float | None
    median_inflation: float | None
    max_inflation: float | None
    median_inflation_random: float | None
    median_inflation_shared_a: float | None
    modules: tuple[MergeModule, ...]
    preflight: Preflight | None = None
    forgetting: MergeForgetting | None = None


@dataclass(frozen=True, kw_only=True)
class CompareReport(Report):
    """A comparison of several fine-tunes of one base.

    Attributes:
        base: The base, as it was named; None if the adapters were compared without it.
        fine_tunes: The fine-tunes, in the order given.
        settings: What was computed.
        pairs: Every pair of them.
        merge: What adding them up does.
        findings: What the reader must know.
        complete: False when something that should have been compared could not be.
        environment: Versions that a figure depends on.
    """

    schema = SCHEMA
    columns = COLUMNS

    base: str | None
    fine_tunes: tuple[Member, ...]
    settings: CompareSettings
    pairs: tuple[PairReport, ...]
    merge: MergeReport
    findings: tuple[Finding, ...]
    complete: bool
    environment: dict[str, Any] = field(default_factory=dict)

    def rows(self) -> Iterator[tuple[Cell, ...]]:
        """One row for each pair and each matrix that both change.

        Kind, layer and energies are None where another fine-tune's update of the matrix cannot be read.
        """
        places = {member.label: place for place, member in enumerate(self.fine_tunes)}
        modules = {module.name: module for module in self.merge.modules}
        for pair in self.pairs:
            for module in pair.modules:
                whole = modules.get(module.name)
                values: dict[str, Cell] = {
                    "a": pair.a,
                    "b": pair.b,
                    "matrix": module.name,
                    "kind": whole.kind if whole else None,
                    "layer": whole.layer if whole else None,
                    "energy_a": whole.energies[places[pair.a]] if whole else None,
                    "energy_b": whole.energies[places[pair.b]] if whole else None,
                    "smallest_left_angle": min(module.left_angles, default=None),
                    "smallest_right_angle": min(module.right_angles, default=None),
                }
                yield tuple(values[c] if c in values else getattr(module, c) for c in COLUMNS)

    def notebook(self) -> Sequence[str]:
        """The fine-tunes, the pairs, what a sum does, and maps of the cosine by layer and kind."""
        from intruscope.compare.notebook import compare_pieces

        return compare_pieces(self)
