"""Heads that are fitted to convergence instead of trained, so that only the body differs between two stages.

A head is the softmax regression of a frozen body's features: over the classes, or, for multiple choice, over
the choices, each of which gets one score from its own features (McFadden's conditional logit, 1974). Both
minimise ``mean cross-entropy + PENALTY / 2 |weights|^2`` on standardised features in float64. The objective
is strictly convex in the weights, so there is one head for a body and a task: no seed, no rate, no number of
steps. The paper (arXiv 2410.21228) trains the head by gradient steps instead.

Shape suffixes: N examples, R rows (an example's choices follow each other), D features, C classes, P numbers
of a head, S scores (N * C, or R).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from intruscope.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Places = NDArray[np.intp]

PENALTY = 0.1
"""Chosen once, by halves of the training examples on the untrained MiniLM (docs/sequence.md)."""
TOLERANCE = 1e-8
"""Norm of the gradient at which a head counts as converged."""
_MAX_STEPS = 500
_CONSTANT = 1e-6
"""A feature whose spread is below this share of the largest one is rounding, and is left out."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedHead:
    """A fitted head.

    Attributes:
        mean_D: Taken off the features.
        scale_D: What they are then multiplied by; 0 for a feature that does not vary.
        weights_CD: Of the standardised features; one row for multiple choice.
        bias_C: Zero for multiple choice.
        loss: Mean cross-entropy on the examples that it was fitted on, nats.
        gradient_norm: At the end.
        num_steps: Of the solver.
    """

    mean_D: Array
    scale_D: Array
    weights_CD: Array
    bias_C: Array
    loss: float
    gradient_norm: float
    num_steps: int

    @property
    def converged(self) -> bool:
        """Whether the gradient vanished."""
        return self.gradient_norm <= TOLERANCE

    def classes(self, features_ND: Array) -> Places:
        """The class of each example; the first of equal ones."""
        scores_NC = self._standardised(features_ND) @ self.weights_CD.T + self.bias_C
        found: Places = np.argmax(scores_NC, axis=1)
        return found

    def choices(self, features_RD: Array, first_N: Places) -> Places:
        """The choice of each example; the first of equal ones.

        Args:
            features_RD: Of all choices.
            first_N: Row of each example's first choice.
        """
        scores_R = self._standardised(features_RD) @ self.weights_CD[0]
        ends = np.append(first_N[1:], len(scores_R))
        found = [int(np.argmax(scores_R[a:b])) for a, b in zip(first_N, ends, strict=True)]
        return np.asarray(found, dtype=np.intp)

    def _standardised(self, features: Array) -> Array:
        return (np.asarray(features, dtype=np.float64) - self.mean_D) * self.scale_D


def fit_classes(
    features_ND: Array, labels_N: Places, *, num_classes: int, penalty: float = PENALTY
) -> FittedHead:
    """Multinomial logistic regression.

    Args:
        features_ND: Of the frozen body.
        labels_N: Class of each example.
        num_classes: C.
        penalty: Weight of half the squared norm of the weights; the biases are free.

    Raises:
        UsageError: an example of some class is missing: its bias would fall without end.
    """
    features_ND = np.asarray(features_ND, dtype=np.float64)
    present = np.bincount(labels_N, minlength=num_classes)
    if not present.all():
        raise UsageError(
            f"none of the {len(labels_N)} examples for the head belongs to class {int(np.argmin(present))} "
            "of "
            f"{num_classes}",
            remedy="raise --head-examples",
        )
    mean_D, scale_D = _standards(features_ND, features_ND.mean(axis=0))
    wide = np.column_stack([(features_ND - mean_D) * scale_D, np.ones(len(features_ND))])
    solved = _solve(_Classes(wide, num_classes), labels_N, penalty)
    found_CP = solved.theta.reshape(num_classes, -1)
    return FittedHead(
        mean_D=mean_D,
        scale_D=scale_D,
        weights_CD=found_CP[:, :-1],
        bias_C=found_CP[:, -1],
        loss=solved.loss,
        gradient_norm=solved.gradient_norm,
        num_steps=solved.num_steps,
    )


def fit_choices(
    features_RD: Array, first_N: Places, answers_N: Places, *, penalty: float = PENALTY
) -> FittedHead:
    """Conditional logit: one score per choice, a softmax over the choices of an example.

    What the choices of an example have in common cancels in the softmax, so features are standardised by
    their spread around the mean of their own example.

    Args:
        features_RD: Of all choices.
        first_N: Row of each example's first choice.
        answers_N: Right choice of each example.
        penalty: Weight of half the squared norm of the weights.
    """
    features_RD = np.asarray(features_RD, dtype=np.float64)
    sizes_N = np.diff(np.append(first_N, len(features_RD)))
    means_ND = np.add.reduceat(features_RD, first_N, axis=0) / sizes_N[:, None]
    centred_RD = features_RD - np.repeat(means_ND, sizes_N, axis=0)
    mean_D = features_RD.mean(axis=0)
    _, scale_D = _standards(centred_RD, np.zeros_like(mean_D))
    solved = _solve(_Choices(centred_RD * scale_D, first_N), answers_N, penalty)
    return FittedHead(
        mean_D=mean_D,
        scale_D=scale_D,
        weights_CD=solved.theta[None, :],
        bias_C=np.zeros(1),
        loss=solved.loss,
        gradient_norm=solved.gradient_norm,
        num_steps=solved.num_steps,
    )


def _standards(features: Array, mean_D: Array) -> tuple[Array, Array]:
    spread_D = np.sqrt(((features - mean_D) ** 2).mean(axis=0))
    varies = spread_D > _CONSTANT * spread_D.max(initial=0.0)
    return mean_D, np.where(varies, 1.0 / np.where(varies, spread_D, 1.0), 0.0)


class _Scores(Protocol):
    """A linear map from the numbers of a head to all scores, each example's together."""

    first_N: Places
    num_parameters: int
    penalised_P: Array

    def scores(self, theta_P: Array) -> Array:
        """(S,)."""

    def pulled(self, residual_S: Array) -> Array:
        """The transposed map, (P,)."""


class _Classes:
    """Class scores; the last number of each class is its bias."""

    def __init__(self, wide: Array, num_classes: int) -> None:
        self._wide = wide
        self._shape = (num_classes, wide.shape[1])
        self.first_N = np.arange(0, len(wide) * num_classes, num_classes)
        self.num_parameters = num_classes * wide.shape[1]
        penalised = np.ones(self._shape)
        penalised[:, -1] = 0.0
        self.penalised_P = penalised.ravel()

    def scores(self, theta_P: Array) -> Array:
        return (self._wide @ theta_P.reshape(self._shape).T).ravel()

    def pulled(self, residual_S: Array) -> Array:
        return (residual_S.reshape(-1, self._shape[0]).T @ self._wide).ravel()


class _Choices:
    """One score per choice."""

    def __init__(self, features_RD: Array, first_N: Places) -> None:
        self._features_RD = features_RD
        self.first_N = first_N
        self.num_parameters = features_RD.shape[1]
        self.penalised_P = np.ones(self.num_parameters)

    def scores(self, theta_P: Array) -> Array:
        return self._features_RD @ theta_P

    def pulled(self, residual_S: Array) -> Array:
        return residual_S @ self._features_RD


@dataclass(frozen=True, kw_only=True, eq=False)
class _Solved:
    theta: Array
    loss: float
    gradient_norm: float
    num_steps: int


def _solve(problem: _Scores, right_N: Places, penalty: float) -> _Solved:
    """Newton steps in a trust region, from zero, until the gradient vanishes."""
    from scipy.optimize import minimize

    first_N = problem.first_N
    num = len(first_N)
    right_S = first_N + right_N
    weights_P = penalty * problem.penalised_P

    def shares(scores_S: Array) -> tuple[Array, float]:
        """Softmax of each example, and the mean cross-entropy."""
        highest_N = np.maximum.reduceat(scores_S, first_N)
        sizes_N = np.diff(np.append(first_N, len(scores_S)))
        shifted_S = scores_S - np.repeat(highest_N, sizes_N)
        raised_S = np.exp(shifted_S)
        sums_N = np.add.reduceat(raised_S, first_N)
        loss = float((np.log(sums_N) - shifted_S[right_S]).mean())
        return raised_S / np.repeat(sums_N, sizes_N), loss

    def objective(theta_P: Array) -> tuple[float, Array]:
        shares_S, loss = shares(problem.scores(theta_P))
        shares_S[right_S] -= 1.0
        gradient_P = problem.pulled(shares_S) / num + weights_P * theta_P
        return loss + 0.5 * float(weights_P @ theta_P**2), gradient_P

    def curvature(theta_P: Array, direction_P: Array) -> Array:
        shares_S, _ = shares(problem.scores(theta_P))
        moved_S = problem.scores(direction_P)
        sizes_N = np.diff(np.append(first_N, len(moved_S)))
        means_N = np.add.reduceat(shares_S * moved_S, first_N)
        bent_S = shares_S * (moved_S - np.repeat(means_N, sizes_N))
        return problem.pulled(bent_S) / num + weights_P * direction_P

    found: Any = minimize(
        objective,
        np.zeros(problem.num_parameters),
        jac=True,
        hessp=curvature,
        method="trust-ncg",
        options={"gtol": 0.1 * TOLERANCE, "maxiter": _MAX_STEPS},
    )
    theta_P = np.asarray(found.x, dtype=np.float64)
    gradient_P = objective(theta_P)[1]
    return _Solved(
        theta=theta_P,
        loss=shares(problem.scores(theta_P))[1],
        gradient_norm=float(np.linalg.norm(gradient_P)),
        num_steps=int(found.nit),
    )
