"""From two models, a text and a task to the parts of the update that forgot, and those that learned."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from intruscope.attribution.parts import parts_of
from intruscope.attribution.path import TOLERANCE, PathLoss
from intruscope.attribution.shares import Shares, share_figures
from intruscope.engine.settings import RunOptions
from intruscope.errors import IntruscopeError, UsageError, printable
from intruscope.fitting.losses import TextItems, fit_protocol, task_items
from intruscope.forgetting.forget import measure_pair, request_of
from intruscope.forgetting.losses import PROTOCOLS
from intruscope.forgetting.models import load_pair
from intruscope.forgetting.scores import check_task
from intruscope.forgetting.tasks import TextTask
from intruscope.forgetting.where import (
    DirectionShare,
    MatrixShare,
    PathTotal,
    Share,
    SpanShare,
    VectorShare,
    WhereReport,
)
from intruscope.forgetting.windows import cut
from intruscope.repair.survey import survey
from intruscope.spectra.records import ScanSettings
from intruscope.weights.matrices import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from intruscope.adapters.live import LivePair
    from intruscope.adapters.opening import ModelLike
    from intruscope.attribution.parts import MatrixPart, ParameterPart
    from intruscope.attribution.path import PathIntegral
    from intruscope.fitting.losses import Items
    from intruscope.forgetting.measurement import Request
    from intruscope.forgetting.records import ForgettingReport
    from intruscope.forgetting.tasks import Task
    from intruscope.forgetting.where import SpanName
    from intruscope.forgetting.windows import Sequences
    from intruscope.repair.survey import Survey, SurveyedMatrix

    Column = tuple[NDArray[np.float64], NDArray[np.float64]]

_MAX_LOGITS = 1 << 26
"""Logits of a batch: half of what a loss alone allows, because their gradients exist beside them."""


def forget_where(base: ModelLike, tuned: ModelLike | None = None, **options: Any) -> ForgettingReport:
    """Measure how much a fine-tune forgot, and attribute it to the parts of the update.

    The loss is differentiated along the straight path from base to tuned weights. Forgetting is split over
    matrices and other tensors, over singular directions, and over the span of the intruders and the rest.
    With a task, so is the gain on the first task that can be scored.

    Args:
        base: The base model.
        tuned: The tuned model; see :func:`intruscope.forgetting.forget.forget`.
        options: The keyword arguments of :func:`intruscope.forgetting.forget.forget`; ``text`` is required.

    Returns:
        The report of ``forget``, with the attribution as its ``where``.

    Raises:
        UsageError: there is no text, or guidance is asked for.
        IntruscopeError: another of its family; see :mod:`intruscope.errors`.

    Cost: with 4 points on the path, about seven times the time of the losses alone.
    """
    request = request_of(**options)
    if request.corpus is None:
        raise UsageError("--where needs a text to attribute forgetting on", remedy="add --text FILE")
    if request.gamma is not None:
        raise UsageError(
            "--where attributes the forgetting of the tuned model, not that of guidance",
            remedy="leave --gamma or --where out",
        )
    pair = load_pair(base, tuned, **request.loading)
    report = measure_pair(pair, request)
    settings = ScanSettings(seed=request.seed)
    found = survey(
        base,
        tuned,
        settings=settings,
        options=RunOptions(workers=0),
        allow_pickle=request.allow_pickle,
        on_progress=request.on_progress,
        on_notice=request.on_notice,
    )
    sequences = cut(
        request.corpus,
        pair.language_model(),
        unit=request.unit,
        context=request.context,
        stride=request.stride,
        max_sequences=request.max_sequences,
    )
    return replace(report, where=attribute(pair, found, sequences, request))


def attribute(pair: LivePair, known: Survey, sequences: Sequences, request: Request) -> WhereReport:
    """Attribute forgetting on a text, and the gain on a task, to the parts of the update.

    Args:
        pair: The loaded pair.
        known: A survey of the same models.
        sequences: The text.
        request: The tasks, of which the first that can be scored is used, and how everything is computed.

    Raises:
        MalformedInput: a loss or a gradient is not finite.
        ResourceExhausted: a batch does not fit on the device.
    """
    language = pair.language_model()
    protocol = fit_protocol(language)
    parts = parts_of(pair, known.matrices, seed=request.seed)
    num_words: int = language.model.get_input_embeddings().num_embeddings
    batch_tokens = max(1, min(request.batch_tokens, _MAX_LOGITS // num_words))

    def integral(items: Items, name: str) -> PathIntegral:
        loss = PathLoss(pair, items, batch_tokens=batch_tokens, name=name, on_progress=request.on_progress)
        return loss.integral(parts)

    text = integral(TextItems(language, sequences, protocol=protocol, seed=request.seed), "loss on the text")
    task = _first_task(pair, request.tasks)
    if task is not None and len(request.tasks) > 1:
        request.on_notice(f"--where attributes the gain on {printable(task.name)}, the first task")
    gain = None if task is None else integral(_items(pair, task, request), "loss on the task")
    return _Attribution(pair, known, parts, text, gain, request).report(task, PROTOCOLS[protocol])


def _first_task(pair: LivePair, tasks: Sequence[Task]) -> Task | None:
    for task in tasks:
        try:
            check_task(pair, task)
        except IntruscopeError:  # a finding of the measurement says why
            continue
        return task
    return None


def _items(pair: LivePair, task: Task, request: Request) -> Items:
    """The loss of a task on the same sequences or examples that its score is measured on."""
    if not isinstance(task, TextTask):
        return task_items(pair, task, max_tokens=request.max_task_tokens, seed=request.seed)
    language = pair.language_model()
    sequences = cut(task.corpus, language, unit=request.unit)
    return TextItems(language, sequences, protocol=fit_protocol(language), seed=request.seed)


class _Attribution:
    """Two path integrals as one record."""

    def __init__(
        self,
        pair: LivePair,
        known: Survey,
        parts: Sequence[ParameterPart],
        text: PathIntegral,
        gain: PathIntegral | None,
        request: Request,
    ) -> None:
        self._pair = pair
        self._known = known
        self._parts = parts
        self._text = text
        self._gain = gain
        self._matrices = {matrix.surveyed.name: matrix for part in parts for matrix in part.matrices}
        self._norm = sum(part.norm for part in parts)
        self._whole = self._sum([part.column for part in parts])
        options = {"num_resamples": request.num_resamples}
        self._forgetting = Shares(integral=text, total_G=self._whole[0], seed=request.seed, **options)
        # Text and task are independent samples, so their draws must be too.
        self._gains = None
        if gain is not None:
            self._gains = Shares(integral=gain, total_G=self._whole[1], seed=request.seed + 1, **options)

    def report(self, task: Task | None, protocol: str) -> WhereReport:
        """The record.

        Args:
            task: The task that the gain was attributed on.
            protocol: How losses on the text were computed.
        """
        text_unit = "nats/token"
        total = self._total(self._text, self._whole[0], text_unit)
        gain_total = None
        if self._gain is not None:
            unit = text_unit if isinstance(task, TextTask) else "nats/example"
            gain_total = self._total(self._gain, self._whole[1], unit)
        settings = self._known.settings
        assert isinstance(settings.k, int)
        return WhereReport(
            task=None if task is None else task.name,
            protocol=protocol,
            k=settings.k,
            epsilon=settings.epsilon,
            total=total,
            gain_total=gain_total,
            spans=self._spans(),
            matrices=self._matrix_shares(),
            tensors=self._tensors(),
            findings=tuple(self._findings(total, gain_total)),
        )

    def _sum(self, columns: Sequence[int]) -> Column:
        """The parts in some columns together: what they add to the forgetting, and to the gain."""
        chosen = list(columns)
        text = self._text.parts_GP[:, chosen].sum(1)
        if self._gain is None:
            return text, np.zeros(0)
        return text, -self._gain.parts_GP[:, chosen].sum(1)

    def _total(self, found: PathIntegral, total_G: NDArray[np.float64], unit: str) -> PathTotal:
        return PathTotal(
            measured=found.measured if found is self._text else -found.measured,
            attributed=float(total_G.sum() / found.units_G.sum()),
            unit=unit,
            num_points=found.num_points,
            num_groups=len(total_G),
            num_sequences=found.num_sequences,
        )

    def _share_of_norm(self, norm: float) -> float:
        return norm / self._norm if self._norm else 0.0

    def _shares(self, named: Sequence[tuple[str, float, Column]]) -> list[dict[str, Any]]:
        """Fields of :class:`Share`, from name, squared norm and column of each part."""
        figures = share_figures(self._forgetting, self._gains, [column for *_, column in named])
        return [
            {"name": name, "norm_share": self._share_of_norm(norm), **vars(each)}
            for (name, norm, _), each in zip(named, figures, strict=True)
        ]

    def _spans(self) -> tuple[SpanShare, ...]:
        intruders: list[int] = []
        others: list[int] = []
        norms: dict[SpanName, float] = dict.fromkeys(
            ("intruders", "other top vectors", "rest of the matrices", "other tensors"), 0.0
        )
        for matrix in self._matrices.values():
            norms["rest of the matrices"] += matrix.norm
            own = zip(matrix.vector_columns, matrix.vector_norms, matrix.surveyed.verdicts, strict=True)
            for column, norm, verdict in own:
                (intruders if verdict == "intruder" else others).append(column)
                norms["intruders" if verdict == "intruder" else "other top vectors"] += norm
                norms["rest of the matrices"] -= norm
        norms["other tensors"] = self._norm - sum(matrix.norm for matrix in self._matrices.values())
        first, second = self._sum(intruders), self._sum(others)
        whole = self._sum([matrix.column for matrix in self._matrices.values()])
        columns: dict[SpanName, Column] = {
            "intruders": first,
            "other top vectors": second,
            "rest of the matrices": _less(_less(whole, first), second),
            "other tensors": _less(self._whole, whole),
        }
        # Differences of sums: rounding may leave a norm just below zero.
        named = [(name, max(0.0, norms[name]), columns[name]) for name in norms]
        return tuple(SpanShare(**fields) for fields in self._shares(named))

    def _matrix_shares(self) -> tuple[MatrixShare, ...]:
        held = [each for each in self._known.matrices if self._is_held(each)]
        nothing = self._sum([])
        named = []
        for surveyed in held:
            part = self._matrices.get(surveyed.name)
            norm, column = (0.0, nothing) if part is None else (part.norm, self._sum([part.column]))
            named.append((surveyed.name, norm, column))
        return tuple(
            MatrixShare(
                **fields,
                kind=surveyed.report.kind,
                layer=surveyed.report.layer,
                directions=self._directions(self._matrices.get(surveyed.name)),
                vectors=self._vectors(self._matrices.get(surveyed.name)),
            )
            for surveyed, fields in zip(held, self._shares(named), strict=True)
        )

    def _is_held(self, surveyed: SurveyedMatrix) -> bool:
        return self._pair.parameter_of(surveyed.name) is not None

    def _point(self, column: int, norm: float) -> DirectionShare:
        text_G, task_G = self._sum([column])
        return DirectionShare(
            norm_share=self._share_of_norm(norm),
            forgetting_share=self._forgetting.of(text_G),
            gain_share=None if self._gains is None else self._gains.of(task_G),
        )

    def _directions(self, part: MatrixPart | None) -> tuple[DirectionShare, ...]:
        if part is None:
            return ()
        return tuple(map(self._point, part.direction_columns, part.direction_norms))

    def _vectors(self, part: MatrixPart | None) -> tuple[VectorShare, ...]:
        if part is None:
            return ()
        points = map(self._point, part.vector_columns, part.vector_norms)
        return tuple(
            VectorShare(**asdict(point), verdict=verdict)
            for point, verdict in zip(points, part.surveyed.verdicts, strict=True)
        )

    def _tensors(self) -> tuple[Share, ...]:
        """What each parameter holds beside surveyed matrices."""
        named = []
        for part in self._parts:
            if not part.is_covered:
                inside = [matrix.column for matrix in part.matrices]
                norm = max(0.0, part.norm - sum(matrix.norm for matrix in part.matrices))
                column = _less(self._sum([part.column]), self._sum(inside))
                named.append((part.changed.name, norm, column))
        return tuple(Share(**fields) for fields in self._shares(named))

    def _findings(self, total: PathTotal, gain_total: PathTotal | None) -> Iterator[Finding]:
        wholes = [part.column for part in self._parts]
        for what, integral, found, shares in (
            ("forgetting", self._text, total, self._forgetting),
            ("gain", self._gain, gain_total, self._gains),
        ):
            if integral is None or found is None or shares is None:
                continue
            if not integral.is_complete(wholes):
                yield _finding(
                    "where-incomplete",
                    f"the parts add up to {found.attributed:+.4f} {found.unit} of {what}, but "
                    f"{found.measured:+.4f} were measured, a difference of more than {TOLERANCE:.0%}, with "
                    f"{found.num_points} points between base and tuned",
                )
            interval = shares.total()
            if interval is not None and interval.low <= 0.0 <= interval.high:
                yield _finding(
                    f"where-no-{what}",
                    f"the {what} is not measurably different from zero ({interval.low:+.4f} to "
                    f"{interval.high:+.4f} {found.unit}), so shares of it mean little",
                )
        num_missing = sum(not self._is_held(each) for each in self._known.matrices)
        if num_missing:
            yield _finding(
                "where-other-form",
                f"transformers keeps {num_missing} matrices in another form than the files; they are counted "
                "among the other tensors",
            )


def _less(first: Column, second: Column) -> Column:
    return first[0] - second[0], first[1] - second[1]


def _finding(code: str, message: str) -> Finding:
    return Finding(code=code, severity="warning", message=message)
