"""Odd but valid models, and what a scan must find in them.

Every architecture of transformers that stores matrices in an unusual way, tiny: ``Conv1D``, fused, tied and
nested parts. Each is fine-tuned in full or with LoRA, saved, and compared with a float64 computation on the
model *in memory*: a module's matrix is what it computes for unit vectors, never what a file or a name says.

The updates are planted so that a transposed reading shows: half of them move left singular vectors only, the
others right ones only.

Shape suffixes: O out, I in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import peft
import torch
import transformers
from odd_families import FAMILIES, Family
from torch import nn
from transformers.pytorch_utils import Conv1D

from intruscope.adapters.folder import open_adapter
from intruscope.adapters.pairing import pair_adapter
from intruscope.errors import IntruscopeError
from intruscope.spectra.matrix import analyse_pair
from intruscope.spectra.records import ScanSettings
from intruscope.weights.pairing import pair_checkpoints
from intruscope.weights.source import open_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from intruscope.weights.matrices import Pairing

TOP, EPSILON, RANK = 10, 0.5, 2
_WHOLE = (nn.Linear, Conv1D, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NAME_OF_PART = re.compile(r"\[(\w+)\]$")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model and how it is fine-tuned."""

    family: str
    square: bool
    method: str

    @property
    def name(self) -> str:
        return f"{self.family}{'-square' if self.square else ''}-{self.method}"


@dataclass(frozen=True, kw_only=True)
class Truth:
    """One matrix of a model in memory, before and after: (out, in) in float64."""

    module: str
    base_OI: torch.Tensor
    tuned_OI: torch.Tensor
    parameter: str


@dataclass(kw_only=True)
class Outcome:
    """What a scan made of one case.

    Attributes:
        verdict: ``right``, ``warned`` (nothing wrong, and it says what is missing), ``refused``, ``wrong``.
        notes: What is wrong, refused or warned of.
    """

    case: str
    verdict: str
    notes: list[str] = field(default_factory=list)
    num_matrices: int = 0
    num_intruders: int = 0


def all_cases() -> list[Case]:
    """Every family, in two sizes, fine-tuned in two ways."""
    return [
        Case(family=name, square=square, method=method)
        for name in FAMILIES
        for square in (False, True)
        for method in ("full", "lora")
    ]


def run_case(case: Case, folder: Path) -> Outcome:
    """Make a model, fine-tune it, scan it, and hold the scan against the model in memory."""
    family = FAMILIES[case.family]
    torch.manual_seed(sum(map(ord, case.name)))
    base = family.make(case.square).eval()
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if "norm" not in name:  # some start as zeros, or unset
                parameter.normal_(0, 0.3 if parameter.ndim > 1 else 0.1)
    base.save_pretrained(folder / "base")
    before = dict(_matrices(base, family))
    tuned = _tuned(case, family, base, before, folder)
    after = dict(_matrices(tuned, family))
    family.disguise(folder / "base")
    if case.method == "full":
        family.disguise(folder / "tuned")
    truths = [
        Truth(module=name, base_OI=matrix, tuned_OI=after[name][0], parameter=parameter)
        for name, (matrix, parameter) in before.items()
    ]
    try:
        if case.method == "full":
            pairing = pair_checkpoints(open_model(folder / "base"), open_model(folder / "tuned"))
        else:
            pairing = pair_adapter(open_model(folder / "base"), open_adapter(folder / "adapter"))
    except IntruscopeError as error:
        return Outcome(case=case.name, verdict="refused", notes=[str(error)])
    return _compared(case, family, base.config, truths, pairing)


def _tuned(
    case: Case,
    family: Family,
    base: nn.Module,
    before: dict[str, tuple[torch.Tensor, str]],
    folder: Path,
) -> nn.Module:
    """Fine-tune a copy of a model and save it."""
    tuned: Any = type(base).from_pretrained(folder / "base", dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(1)
    if case.method == "full":
        with torch.no_grad():
            for index, parameter in enumerate(p for p in tuned.parameters() if p.ndim > 1):
                for part in parameter.flatten(2) if parameter.ndim == 3 else [parameter.flatten(1)]:
                    part += _planted(part, index, generator)
        tuned.save_pretrained(folder / "tuned")
        return tuned
    targets = family.targets(tuned)
    config = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=targets)
    tuned = peft.get_peft_model(tuned, config).eval()
    with torch.no_grad():
        named = tuned.base_model.model.named_modules()
        layers = [each for each in named if isinstance(each[1], peft.tuners.lora.LoraLayer)]
        for index, (name, layer) in enumerate(layers):
            matrix_OI = before[name][0]
            left, _, right = torch.linalg.svd(matrix_OI, full_matrices=False)
            size = 1.5 * float(torch.linalg.matrix_norm(matrix_OI, 2))
            up, down = left[:, :RANK], torch.randn(RANK, matrix_OI.shape[1], generator=generator).double()
            if index % 2:
                up = torch.randn(matrix_OI.shape[0], RANK, generator=generator).double()
                down = right[:RANK]
            up, down = size * up / up.norm(dim=0), down / down.norm(dim=1, keepdim=True)
            if "default" in layer.lora_A:
                layer.lora_A["default"].weight.copy_(down)
                layer.lora_B["default"].weight.copy_(up)
            else:
                layer.lora_embedding_A["default"].copy_(down)
                layer.lora_embedding_B["default"].copy_(up)
    has_words = not isinstance(tuned.base_model.model, transformers.ClvpModelForConditionalGeneration)
    tuned.save_pretrained(folder / "adapter", save_embedding_layers="auto" if has_words else False)
    return tuned.base_model.model


def _planted(stored: torch.Tensor, index: int, generator: torch.Generator) -> torch.Tensor:
    """An update that moves the vectors of one side only, and a little noise."""
    left, values, right = torch.linalg.svd(stored.double(), full_matrices=False)
    one, other = left[:, 0], torch.randn(stored.shape[1], generator=generator).double()
    if index % 2:
        one, other = torch.randn(stored.shape[0], generator=generator).double(), right[0]
    planted = 2.0 * values[0] * torch.outer(one / one.norm(), other / other.norm())
    return (planted + 1e-3 * torch.randn(stored.shape, generator=generator).double()).to(stored.dtype)


def _matrices(model: nn.Module, family: Family) -> Iterator[tuple[str, tuple[torch.Tensor, str]]]:
    """Name to the matrix that each module computes with, and its parameter; experts one by one."""
    model = model.double()
    tensors = {id(p): name for name, p in model.named_parameters()}
    tuner = peft.tuners.tuners_utils.BaseTunerLayer
    inner: set[str] = set()
    with torch.no_grad():
        for name, module in model.named_modules(remove_duplicate=False):
            if any(name.startswith(f"{each}.") for each in inner):
                continue
            whole = module
            if isinstance(module, tuner):
                inner.add(name)
                whole = module.get_base_layer()
            if isinstance(whole, _WHOLE):
                yield name, (_computed(module, whole).clone(), tensors.get(id(whole.weight), ""))
                continue
            for leaf, parameter in module.named_parameters(recurse=False):
                if parameter.ndim == 3 and "expert" in name:
                    for expert, stored in enumerate(parameter):
                        matrix = stored.T if family.experts == "io" else stored
                        yield f"{name}.{leaf}[{expert}]", (matrix.clone(), f"{name}.{leaf}")
                elif parameter.ndim == 2 and not leaf.endswith(
                    "bias"
                ):  # a router, attention's fused projection: used with F.linear
                    yield f"{name}.{leaf}".removesuffix(".weight"), (parameter.clone(), f"{name}.{leaf}")


def _computed(module: nn.Module, whole: nn.Module) -> torch.Tensor:
    """(out, in), by what the module gives for every unit vector; convolutions are flattened."""
    if isinstance(whole, nn.Embedding):
        words = torch.arange(whole.num_embeddings)
        if whole is not module:
            return (module(words) / getattr(whole, "embed_scale", 1.0)).T.double()
        return nn.Embedding.forward(whole, words).T  # positions of BART's kind do more in their own
    if isinstance(whole, (nn.Linear, Conv1D)):
        num_in = whole.weight.shape[1] if isinstance(whole, nn.Linear) else whole.weight.shape[0]
        zero = module(torch.zeros(1, num_in, dtype=torch.float64))
        return (module(torch.eye(num_in, dtype=torch.float64)) - zero).T
    if whole is not module:  # a convolution with factors
        return (whole.weight + module.get_delta_weight("default")).flatten(1).double()
    return whole.weight.flatten(1).double()


def _compared(case: Case, family: Family, config: Any, truths: list[Truth], pairing: Pairing) -> Outcome:
    """Every pair of a plan against the truth, and every moved matrix against the plan."""
    outcome = Outcome(case=case.name, verdict="right")
    covered: set[str] = set()
    by_rows = _Rows(truths)
    counted = 0
    for pair in pairing.pairs:
        base, tuned = pair.load_float64()
        part = _NAME_OF_PART.search(pair.name)
        found = by_rows.find(base, pair.name)
        if found is None:
            outcome.notes.append(f"{pair.name}: no module computes with this matrix")
            continue
        truth, rows = found
        expected = truth.tuned_OI[rows]
        covered.add(truth.module)
        if not torch.allclose(tuned, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())):
            outcome.notes.append(f"{pair.name}: the tuned matrix is another than that of {truth.module}")
        # A file may call a module otherwise than transformers does in memory; the numbers of blocks stay.
        numbers = [re.findall(r"(?<=\.)\d+(?=\.)", name) for name in (pair.name, truth.module)]
        if numbers[0] != numbers[1] and "expert" not in pair.name:
            outcome.notes.append(f"{pair.name}: this is the matrix of {truth.module}")
        leaf = pair.name.rpartition(".")[2]
        named = part[1] if part is not None else {"w1": "gate", "w3": "up"}.get(leaf, "")
        if named in ("q", "k", "v", "gate", "up"):
            wanted = family.rows_of(truth.module, named, truth.base_OI.shape[0], config)
            if wanted is None or rows.tolist() != wanted:
                outcome.notes.append(f"{pair.name}: not the rows of {part[1]} in {truth.module}")
        outcome.num_matrices += 1
        square = base.shape[0] == base.shape[1]
        if counted < 12 and (square or counted < 4) and min(base.shape) > TOP:
            counted += 1
            _count(pair, truth, rows, outcome)
    _moved(truths, covered, pairing, outcome)
    warned = [f.code for f in pairing.findings if f.severity != "info" and f.code != "other-base"]
    if outcome.notes:
        outcome.verdict = "wrong"
    elif warned:
        outcome.verdict, outcome.notes = (
            "warned",
            [
                *(f"{f.code}: {f.message}" for f in pairing.findings if f.code in warned),
                *(f"gap: {e.tensor}: {e.reason}" for e in pairing.coverage if e.gap),
            ],
        )
    return outcome


def _count(pair: Any, truth: Truth, rows: torch.Tensor, outcome: Outcome) -> None:
    """Intruders of the scan against two dense float64 decompositions of the truth."""
    report = analyse_pair((pair, ScanSettings(k=TOP, epsilon=EPSILON)))
    base = torch.linalg.svd(truth.base_OI[rows], full_matrices=False)[0]
    tuned = torch.linalg.svd(truth.tuned_OI[rows], full_matrices=False)[0][:, :TOP]
    alignment = (base.T @ tuned).abs().amax(dim=0)
    expected = int((alignment < EPSILON).sum())
    (side,) = report["sides"]
    near = bool(((alignment - EPSILON).abs() < 1e-3).any())
    if side["num_intruders"] != expected and not near and not set(side["verdicts"]) - {"intruder", "aligned"}:
        outcome.notes.append(f"{pair.name}: {side['num_intruders']} intruders instead of {expected}")
    outcome.num_intruders += expected


def _moved(truths: list[Truth], covered: set[str], pairing: Pairing, outcome: Outcome) -> None:
    """A matrix that moved must be compared, unless the plan itself says that something is missing."""
    seen = {truth.parameter for truth in truths if truth.module in covered}
    reported = " ".join(entry.tensor for entry in pairing.coverage if entry.gap or entry.head)
    reported += " ".join(f.message for f in pairing.findings if f.severity == "warning")
    for truth in truths:
        scale = float(truth.base_OI.norm())
        if float((truth.tuned_OI - truth.base_OI).norm()) < 1e-6 * scale or truth.module in covered:
            continue
        if truth.parameter in seen:
            continue
        end = ".".join(truth.module.split(".")[-3:])
        if end not in reported:
            outcome.notes.append(f"{truth.module} moved, and nothing says that it was not compared")


class _Rows:
    """Finds a matrix, or some rows of it, among those that modules compute with."""

    def __init__(self, truths: list[Truth]) -> None:
        self._where: dict[bytes, list[tuple[Truth, int]]] = {}
        for truth in truths:
            for row, numbers in enumerate(truth.base_OI.float().numpy()):
                self._where.setdefault(numbers.tobytes(), []).append((truth, row))

    def find(self, matrix_OI: torch.Tensor, name: str) -> tuple[Truth, torch.Tensor] | None:
        numbers = matrix_OI.float().numpy()
        candidates = self._where.get(numbers[0].tobytes(), [])
        leaf = _NAME_OF_PART.sub("", name).rpartition(".")[2]
        candidates = sorted(candidates, key=lambda each: each[0].module.rpartition(".")[2] != leaf)
        candidates.sort(key=lambda each: -_common_end(each[0].module, _NAME_OF_PART.sub("", name)))
        for truth, _ in candidates:
            rows = [
                next((row for other, row in self._where.get(each.tobytes(), []) if other is truth), None)
                for each in numbers
            ]
            if all(row is not None for row in rows):
                found = torch.tensor(rows)
                is_whole = _NAME_OF_PART.search(name) is None and not name.endswith((".w1", ".w3"))
                if not is_whole or torch.equal(found, torch.arange(truth.base_OI.shape[0])[: len(found)]):
                    return truth, found
        return None


def _common_end(one: str, other: str) -> int:
    """How many last words two names have in common."""
    count = 0
    for mine, theirs in zip(reversed(one.split(".")), reversed(other.split(".")), strict=False):
        if mine != theirs:
            break
        count += 1
    return count
