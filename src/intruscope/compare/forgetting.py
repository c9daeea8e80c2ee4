"""Forgetting of a merge beside its parts and their plain sum, on live models; nothing is written to disk."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intruscope.adapters.opening import open_pair
from intruscope.compare.matrix import load_updates
from intruscope.compare.preflight import weighted_sum
from intruscope.compare.records import MeasuredModel, MergeForgetting
from intruscope.forgetting import intervals
from intruscope.forgetting.losses import PROTOCOLS, choose_protocol, measure
from intruscope.forgetting.models import load_pair
from intruscope.forgetting.settings import ForgetSettings
from intruscope.forgetting.texts import read_texts
from intruscope.forgetting.windows import cut
from intruscope.linalg.forms import dense_of
from intruscope.progress import Progress
from intruscope.spectra.matrix import exact_arithmetic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from intruscope.adapters.live import LivePair
    from intruscope.compare.matrix_task import MatrixTask
    from intruscope.compare.opening import Opened
    from intruscope.compare.records import CompareReport
    from intruscope.forgetting.losses import SequenceLosses
    from intruscope.progress import OnProgress


@dataclass(frozen=True, kw_only=True)
class _Merged:
    """One matrix of the base with the weighted sum of all updates; read when it is applied."""

    task: MatrixTask
    weight: float

    @property
    def name(self) -> str:
        return self.task.name

    def applied(self, base_OI: Tensor, tuned_OI: Tensor) -> Tensor:  # noqa: ARG002 - both are the base here
        with exact_arithmetic(self.task.settings.threads):
            form = weighted_sum(load_updates(self.task)[1], self.weight)
            assert form is not None
            update_OI = dense_of(form)
        return base_OI + update_OI.to(base_OI.dtype).to(base_OI.device)


def measure_merge(
    opened: Opened,
    report: CompareReport,
    *,
    text: str | Path | Sequence[str | Path],
    field: str | None,
    measuring: ForgetSettings | None,
    on_progress: OnProgress,
) -> MergeForgetting:
    """Measure the base, every fine-tune, their merge and their sum on one text.

    The merge holds the matrices' updates alone: norms, biases and heads are the base's.

    Args:
        opened: The models, with their base; every update can be read.
        report: What was found about their weights; it has the merge's weight.
        text: Files, patterns, or datasets on the hub.
        field: Column that holds the text, in tables.
        measuring: How losses are measured.
        on_progress: Called before and after every model.

    Raises:
        IntruscopeError: a model has no language-model head, a loss is not finite, or another of its family.
    """
    measuring = measuring or ForgetSettings()
    assert opened.fine_tunes is not None
    corpus = read_texts([text] if isinstance(text, (str, Path)) else list(text), field=field)
    first = opened.fine_tunes.members[0]
    base = first.base if first.base_module is None else first.base_module
    # The base as both states: an edit then is the base with one update, and nothing of any fine-tune.
    loading: dict[str, Any] = {
        "device": measuring.device,
        "dtype": measuring.dtype,
        "tokenizer": measuring.tokenizer,
    }
    pair = load_pair(open_pair(base, base), **loading)
    language = pair.language_model()
    protocol = choose_protocol(language.kind, measuring.protocol)
    sequences = cut(
        corpus,
        language,
        unit=measuring.unit,
        context=measuring.context,
        stride=measuring.stride,
        max_sequences=measuring.max_sequences,
    )
    found: dict[str, SequenceLosses] = {}
    total = len(opened.labels) + 3

    def losses(name: str, live: LivePair) -> None:
        on_progress(Progress(stage="measuring", done=len(found), total=total, unit="models", item=name))
        found[name] = measure(
            live.language_model(),
            sequences,
            protocol=protocol,
            seed=measuring.seed,
            batch_tokens=measuring.batch_tokens,
        )
        on_progress(Progress(stage="measuring", done=len(found), total=total, unit="models", item=name))

    # Keys of two words cannot be labels' keys: a fine-tune may be called "merge".
    losses("the base", pair)
    tasks = opened.tasks(report.settings)
    for name, weight in (("the merge", report.merge.weight), ("the sum", 1.0)):
        with pair.with_edits(_Merged(task=task, weight=weight) for task in tasks):
            losses(name, pair)
    del pair, language
    for label, member in zip(opened.labels, opened.fine_tunes.members, strict=True):
        # A base in memory is a module to the first alone: the others were opened with its weights.
        whole = replace(member, base_module=first.base_module)
        losses(f"part {label}", load_pair(whole, **loading))
    models = [(label, f"part {label}", True) for label in opened.labels]
    models += [("merge", "the merge", False), ("sum", "the sum", False)]
    bootstrap = {"num_resamples": measuring.num_resamples, "seed": measuring.seed}
    before, merge = found["the base"], found["the merge"]
    return MergeForgetting(
        text=", ".join(source.name for source in corpus.sources),
        sha256=corpus.sha256,
        protocol=PROTOCOLS[protocol],
        num_sequences=sequences.num_sequences,
        num_tokens=int(before.tokens.sum()),
        base_loss=intervals.loss_per(before.nats, before.tokens, **bootstrap),
        models=tuple(
            MeasuredModel(
                name=name,
                part=part,
                loss=intervals.loss_per(found[key].nats, before.tokens, **bootstrap),
                forgetting=intervals.paired_difference(
                    before.nats, found[key].nats, before.tokens, **bootstrap
                ),
                merge_difference=None
                if found[key] is merge
                else intervals.paired_difference(found[key].nats, merge.nats, before.tokens, **bootstrap),
            )
            for name, key, part in models
        ),
    )
