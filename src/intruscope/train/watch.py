"""A callback that watches intruder dimensions being born while a model is trained."""

from __future__ import annotations

import math
import time
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from intruscope.adapters.live_matrices import LiveMatrix, live_matrices
from intruscope.engine.environment import environment
from intruscope.errors import IntruscopeError, MalformedInput, UsageError
from intruscope.forgetting.intervals import paired_difference
from intruscope.plots.figures import write_figures
from intruscope.plots.watch import watch_figure
from intruscope.spectra.matrix import exact_arithmetic
from intruscope.spectra.records import ScanSettings
from intruscope.train.look_file import Look, LookFile, figures
from intruscope.train.looks import MatrixLook, MatrixWatch
from intruscope.train.probe import ForgettingProbe
from intruscope.weights.layout import base_matrices
from intruscope.weights.source import open_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from intruscope.adapters.live_matrices import Form
    from intruscope.forgetting.intervals import Interval
    from intruscope.forgetting.losses import SequenceLosses

_FIGURE_NAME = "intruders"


class IntruderWatch(TrainerCallback):  # type: ignore[misc]
    """Looks at the top of every trained matrix every few steps: one line in anybody's Trainer.

    ::

        trainer.add_callback(IntruderWatch(trainer, every=50))
        trainer.train()

    At step 0, every ``every`` steps and at the end it finds the leading singular vectors of every linear
    layer of the blocks that is trained (whole, or by a method of PEFT), compares them with the base's and
    gives the verdicts of ``intruscope scan`` on the same state. Nothing that it does changes the training.

    Figures go to the Trainer's log, and so to whatever ``report_to`` names; everything goes to
    ``looks.jsonl`` in the folder; at the end a picture is drawn there. Several processes share the work.

    Args:
        trainer: Whose log takes the figures. Without it (``callbacks=[IntruderWatch()]``) they go to the file
            alone.
        every: Steps between looks.
        k: Leading vectors per matrix.
        epsilon: Alignment below which a vector is an intruder.
        base: Folder, file or hub id of the model before, where it is not what training starts from (a start
            of PiSSA's kind, a run that goes on from an adapter); also where a classifier's language-model
            head is from.
        text: Small text on which forgetting is measured at every look.
        folder: Where looks and picture go; ``intruders`` in the Trainer's output folder by default.
        pictures: Draw a picture at the end, if there are intruders or forgetting to show.
        stop_at_intruders: Stop training at this number of intruders.
        stop_at_forgetting: Stop training when the loss on the text has risen by this many nats per token.
        seed: Random seed of the certificates.

    Raises:
        UsageError: values that make no sense.
    """

    def __init__(
        self,
        trainer: Any = None,
        *,
        every: int = 50,
        k: int = 10,
        epsilon: float = 0.5,
        base: str | Path | None = None,
        text: str | Path | Sequence[str | Path] | None = None,
        folder: str | Path | None = None,
        pictures: bool = True,
        stop_at_intruders: int | None = None,
        stop_at_forgetting: float | None = None,
        seed: int = 0,
    ) -> None:
        _check(every, k, epsilon, stop_at_forgetting, text)
        self._trainer = trainer
        self._every = every
        self._settings = ScanSettings(k=k, epsilon=epsilon, seed=seed)
        self._base_name = base
        self._text = [text] if isinstance(text, (str, Path)) else text
        self._folder = Path(folder) if folder is not None else None
        self._pictures = pictures
        self._stop_at_intruders = stop_at_intruders
        self._stop_at_forgetting = stop_at_forgetting
        self._kept: dict[str, Tensor] | None = None
        self._matrices: list[LiveMatrix] = []
        self._watches: list[MatrixWatch] = []
        self._probe: ForgettingProbe | None = None
        self._file: LookFile | None = None
        self._writing = True
        self.looks: list[Look] = []
        if trainer is not None:
            self._keep_base(trainer.model)

    def forgetting(self, look: Look) -> Interval | None:
        """The rise of the loss on the text from the first look to another, with its paired interval.

        Nats per token. None where a loss of either look is missing.
        """
        if self._probe is None or not look.sequence_nats or not self.looks[0].sequence_nats:
            return None
        return paired_difference(self.looks[0].sequence_nats, look.sequence_nats, self._probe.tokens)

    # --- what the Trainer calls ----------------------------------------------------------------------

    def on_init_end(self, _args: Any, _state: Any, _control: Any, **kwargs: Any) -> None:
        """Remember the weights before a checkpoint is loaded over them."""
        if kwargs.get("model") is not None:  # a Trainer with model_init makes its model later
            self._keep_base(kwargs["model"])

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the start; refuse what cannot be watched before time is spent on it."""
        model = _unwrapped(kwargs["model"])
        self._matrices = live_matrices(model)
        if self._kept is None:
            moved = next((m.name for m in self._matrices if not m.keeps_base), None)
            if state.global_step > 0 and moved is not None and self._base_name is None:
                raise UsageError(
                    "the run was resumed, and the watch never saw the weights from before training",
                    remedy="pass the watch to the Trainer's constructor, or name the base: "
                    "IntruderWatch(base=...)",
                    tensor=moved,
                )
            self._keep_base(model)
        kept = self._kept if self._kept is not None else {}
        if not self._matrices:
            raise UsageError(
                "no linear layer of the model's blocks is trained, so there is nothing to watch",
                remedy="train some of them, or remove IntruderWatch",
            )
        self._watches = [
            MatrixWatch(m.name, _base_of(m, kept.get(m.name)), self._settings) for m in self._matrices
        ]
        if self._text is not None:
            tokenizer = kwargs.get("processing_class")
            self._probe = ForgettingProbe(model, tokenizer, self._text, self._base_name)
        if args.process_index == 0:
            self._open_file(args, state)
        if self._went_on(state.global_step):
            self._share(args)  # the vectors of the last look, which are in no file
        else:
            self._look(args, state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look, if it is time."""
        if state.global_step % self._every == 0:
            self._look(args, state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look at the end, and draw."""
        if self.looks and self.looks[-1].step < state.global_step:
            self._look(args, state, control)
        if self._pictures and args.process_index == 0 and self._file is not None and self._has_a_picture():
            path = self._file.path
            try:
                write_figures(lambda: [(_FIGURE_NAME, watch_figure(self.looks))], path.parent)
            except IntruscopeError as error:
                warnings.warn(f"the picture of the watched run could not be written: {error}", stacklevel=2)

    def _has_a_picture(self) -> bool:
        """Whether there is anything to draw: an intruder at some look, or forgetting."""
        return any(look.intruders or look.forgetting is not None for look in self.looks)

    # --- the base ------------------------------------------------------------------------------------

    def _keep_base(self, model: nn.Module) -> None:
        """Keep the base's matrices where training, or a method's start, moves the model's own."""
        if self._base_name is not None:
            self._kept = _stored_base(self._base_name, live_matrices(model))
            return
        with torch.no_grad():
            self._kept = {
                m.name: _whole(m).to(m.parameter.dtype) if m.layer is None else _whole(m)
                for m in live_matrices(model)
                if not m.keeps_base
            }

    # --- looking -------------------------------------------------------------------------------------

    def _look(self, args: Any, state: Any, control: Any) -> None:
        started = time.perf_counter()
        found = self._share(args)
        measured = self._measured() if args.process_index == 0 else None
        shares = _gathered((found, measured, time.perf_counter() - started), args.world_size)
        ordered = dict(pair for share, _, _ in shares for pair in share)
        matrices: tuple[MatrixLook, ...] = tuple(ordered[i] for i in range(len(self._matrices)))
        measured = shares[0][1]
        loss = measured.nats_per_token if measured is not None else None
        first = self.looks[0].loss if self.looks else loss
        look = Look(
            step=state.global_step,
            epoch=state.epoch,
            seconds=round(max(seconds for _, _, seconds in shares), 4),
            matrices=matrices,
            loss=loss,
            forgetting=loss - first if loss is not None and first is not None else None,
            sequence_nats=tuple(measured.nats.tolist()) if measured is not None else (),
        )
        self.looks.append(look)
        self._write(look)
        self._log(look, state, control)
        self._stop(look, control)

    def _measured(self) -> SequenceLosses | None:
        """The losses on the text, None where one is no number: such a training is the Trainer's to end."""
        if self._probe is None:
            return None
        try:
            return self._probe.losses()
        except MalformedInput:
            return None

    def _share(self, args: Any) -> list[tuple[int, MatrixLook]]:
        """This process's part of a look, with the places of the matrices."""
        mine = range(args.process_index, len(self._matrices), args.world_size)
        with exact_arithmetic(torch.get_num_threads()):
            return [(i, self._watches[i].look(self._form(self._matrices[i]))) for i in mine]

    def _form(self, matrix: LiveMatrix) -> Form:
        """The matrix as it is now, against the base that the watch knows."""
        form, kept = matrix.now(), (self._kept or {}).get(matrix.name)
        if isinstance(form, torch.Tensor) or kept is None:
            return form
        weight_OI = matrix.weight()
        # A chain of adapters is merged into the weights that it stands on, link by link.
        return form if torch.equal(weight_OI, _widened(kept)) else weight_OI + form[0] @ form[1]

    def _log(self, look: Look, state: Any, control: Any) -> None:
        if self._trainer is not None:
            # Logging takes back the Trainer's own wish to log this step.
            wish = control.should_log
            self._trainer.log(figures(look))
            control.should_log = wish
        else:
            state.log_history.append({**figures(look), "step": look.step})

    def _stop(self, look: Look, control: Any) -> None:
        many = self._stop_at_intruders is not None and len(look.intruders) >= self._stop_at_intruders
        risen = self._stop_at_forgetting is not None and (look.forgetting or 0.0) >= self._stop_at_forgetting
        if many or risen:
            control.should_training_stop = True

    # --- the file ------------------------------------------------------------------------------------

    def _open_file(self, args: Any, state: Any) -> None:
        folder = self._folder if self._folder is not None else Path(args.output_dir) / "intruders"
        header = {
            "every": self._every,
            "k": self._settings.k,
            "epsilon": self._settings.epsilon,
            "seed": self._settings.seed,
            "text_sha256": self._probe.sha256 if self._probe is not None else None,
            "matrices": [
                {"name": m.name, "kind": m.view.kind, "layer": m.view.layer, "shape": list(m.view.shape)}
                for m in self._matrices
            ],
            "environment": environment(),
        }
        self._file = LookFile(folder / "looks.jsonl", header, step=state.global_step)

    def _went_on(self, step: int) -> bool:
        """Take up what an earlier part of this run saw, on every process; whether it saw this very step."""
        world = torch.distributed.get_world_size() if _is_distributed() else 1
        self.looks = _gathered(list(self._file.looks) if self._file is not None else [], world)[0]
        if not self.looks:
            return False
        last = self.looks[-1]
        for place, watch in enumerate(self._watches):
            tracks = [v.track for look in self.looks for v in look.matrices[place].vectors]
            seen = last.matrices[place] if last.step == step else None
            watch.go_on(seen, max(tracks, default=-1) + 1)
        return last.step == step

    def _write(self, look: Look) -> None:
        if self._file is None or not self._writing:
            return
        try:
            self._file.append(look)
        except IntruscopeError as error:  # a watch must not end the training that it watches
            self._writing = False
            warnings.warn(f"the watch can no longer write its looks: {error}", stacklevel=2)


def _check(every: int, k: int, epsilon: float, stop_at_forgetting: float | None, text: object) -> None:
    for name, value, good, expected in (
        ("every", every, every >= 1, "at least 1"),
        ("k", k, k >= 1, "at least 1"),
        ("epsilon", epsilon, 0.0 < epsilon < 1.0, "a number between 0 and 1"),
        ("stop_at_forgetting", stop_at_forgetting, stop_at_forgetting is None or text is not None,
         "a text to measure it on"),
    ):  # fmt: skip
        if not good:
            raise UsageError(
                f"{name}={value} is not valid: it needs {expected}", remedy="see help(IntruderWatch)"
            )


def _unwrapped(model: nn.Module) -> nn.Module:
    from accelerate.utils import extract_model_from_parallel  # type: ignore[import-untyped]

    bare: nn.Module = extract_model_from_parallel(model, keep_torch_compile=False)
    return bare


def _whole(matrix: LiveMatrix) -> Tensor:
    form = matrix.now()
    return form if isinstance(form, torch.Tensor) else matrix.weight()


def _base_of(matrix: LiveMatrix, kept: Tensor | None) -> Callable[[], Tensor]:
    return _Unmoved(matrix) if kept is None else partial(_widened, kept)


class _Unmoved:
    """The model's own weight as the base, for as long as nothing is merged into it."""

    def __init__(self, matrix: LiveMatrix) -> None:
        self._matrix = matrix
        self._sum: float | None = None

    def __call__(self) -> Tensor:
        weight_OI = self._matrix.weight()
        found = float(weight_OI.sum(dtype=torch.float64))
        if self._sum is not None and not math.isclose(found, self._sum, rel_tol=1e-9, abs_tol=1e-9):
            raise UsageError(
                "the weights under the adapter have changed since the start, so they are no longer the "
                "base's",
                remedy="name the base: IntruderWatch(base=...)",
                tensor=self._matrix.name,
            )
        self._sum = found
        return weight_OI


def _widened(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _stored_base(name: str | Path, wanted: Sequence[LiveMatrix]) -> dict[str, Tensor]:
    """The matrices of a named base."""
    listing = base_matrices(open_model(name))
    views = {view.name: view for views in listing.matrices.values() for view in views}
    lost = next((m for m in wanted if m.name not in views or views[m.name].shape != m.view.shape), None)
    if lost is not None:
        raise UsageError(
            "the base has no such matrix of this shape",
            remedy="name the model that training started from",
            file=str(name),
            tensor=lost.name,
        )
    return {m.name: views[m.name].load() for m in wanted}


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _gathered(mine: Any, world: int) -> list[Any]:
    """What every process has, in their order, on every process."""
    if world == 1 or not _is_distributed():
        return [mine]
    shares: list[Any] = [None] * world
    torch.distributed.all_gather_object(shares, mine)
    return shares
