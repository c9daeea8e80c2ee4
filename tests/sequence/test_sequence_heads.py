"""A fitted head is the optimum of its objective, whatever the solver; and sees nothing that it should not."""

import itertools

import numpy as np
import pytest
import torch

from intruscope.errors import UsageError
from intruscope.sequence.heads import PENALTY, TOLERANCE, fit_choices, fit_classes


def mixed(rows, columns, seed=0):
    """Correlated features of very different sizes around a far mean."""
    generator = np.random.default_rng(seed)
    mixing = generator.standard_normal((columns, columns))
    sizes = 10.0 ** generator.uniform(-2, 2, columns)
    return (generator.standard_normal((rows, columns)) @ mixing + 7.0) * sizes


def classes(num=60, width=5, num_classes=3, seed=0):
    generator = np.random.default_rng(seed + 100)
    features = mixed(num, width, seed)
    scores = (features - features.mean(0)) / features.std(0) @ generator.standard_normal((width, num_classes))
    return features, (scores + generator.gumbel(size=scores.shape)).argmax(1)


def choices(num=50, width=4, seed=0):
    """Examples of two to four choices with a shift of their own, which must not matter."""
    generator = np.random.default_rng(seed + 200)
    sizes = generator.integers(2, 5, num)
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    features = mixed(int(sizes.sum()), width, seed)
    scores = (features / features.std(0)) @ generator.standard_normal(width)
    scores += generator.gumbel(size=len(scores))
    answers = np.array([scores[a : a + n].argmax() for a, n in zip(first, sizes, strict=True)])
    return features, first, answers, sizes


def class_objective(weights, bias, features, labels, penalty):
    """The definition in float64."""
    scores = features @ weights.T + bias
    lost = torch.logsumexp(scores, 1) - scores[torch.arange(len(labels)), torch.tensor(labels)]
    return lost.mean() + 0.5 * penalty * (weights**2).sum()


def brute_force(objective, num):
    """Newton's method with the whole Hessian by automatic differentiation, damped where it must be."""
    theta = torch.zeros(num, dtype=torch.float64)
    for _ in range(200):
        gradient = torch.autograd.functional.jacobian(objective, theta)
        if gradient.norm() < 1e-13:
            break
        hessian = torch.autograd.functional.hessian(objective, theta)
        step = torch.linalg.lstsq(hessian, -gradient).solution
        size = 1.0
        while objective(theta + size * step) > objective(theta) and size > 1e-9:
            size /= 2
        theta = theta + size * step
    return theta


def test_class_heads_are_the_optimum_of_the_definition():
    features, labels = classes()
    head = fit_classes(features, labels, num_classes=3)
    assert head.converged and head.gradient_norm <= TOLERANCE
    standard = torch.tensor((features - features.mean(0)) / features.std(0))

    def objective(theta):
        return class_objective(theta[:15].reshape(3, 5), theta[15:], standard, labels, PENALTY)

    best = brute_force(objective, 18)
    found = torch.tensor(np.concatenate([head.weights_CD.ravel(), head.bias_C]))
    assert objective(found).item() == pytest.approx(objective(best).item(), abs=1e-12)
    assert torch.allclose(found[:15], best[:15], atol=1e-6)
    differences = [
        (found[15 + a] - found[15 + b]) - (best[15 + a] - best[15 + b])
        for a, b in itertools.combinations(range(3), 2)  # one constant in all biases is free
    ]
    assert max(map(abs, differences)) < 1e-6
    scores = standard.numpy() @ best[:15].reshape(3, 5).numpy().T + best[15:].numpy()
    assert (head.classes(features) == scores.argmax(1)).all()
    loss = np.mean([np.logaddexp.reduce(s) - s[y] for s, y in zip(scores, labels, strict=True)])
    assert head.loss == pytest.approx(loss, abs=1e-9)


def test_choice_heads_are_the_optimum_of_the_definition():
    features, first, answers, sizes = choices()
    head = fit_choices(features, first, answers)
    assert head.converged
    centred = np.concatenate([features[a : a + n] - features[a : a + n].mean(0)
                              for a, n in zip(first, sizes, strict=True)])  # fmt: skip
    standard = torch.tensor(centred / np.sqrt((centred**2).mean(0)))

    # One row per example, filled up with choices that nobody takes: autograd costs by the operation.
    padded = torch.zeros(len(first), max(sizes), 4, dtype=torch.float64)
    absent = torch.full((len(first), max(sizes)), -1e9, dtype=torch.float64)
    for row, (start, size) in enumerate(zip(first, sizes, strict=True)):
        padded[row, :size], absent[row, :size] = standard[start : start + size], 0.0

    def objective(theta):
        scores = padded @ theta + absent
        right = scores[torch.arange(len(first)), torch.tensor(answers)]
        return (torch.logsumexp(scores, 1) - right).mean() + 0.5 * PENALTY * (theta**2).sum()

    best = brute_force(objective, 4)
    assert torch.allclose(torch.tensor(head.weights_CD[0]), best, atol=1e-6)
    chosen = [int((standard[a : a + n] @ best).argmax()) for a, n in zip(first, sizes, strict=True)]
    assert (head.choices(features, first) == chosen).all()


def test_two_choices_are_the_logit_of_their_difference():
    """A law: with two choices it is logistic regression on the difference, without a bias."""
    generator = np.random.default_rng(0)
    pairs = mixed(80, 3)
    first = np.arange(0, 80, 2)
    answers = generator.integers(0, 2, 40)
    head = fit_choices(pairs, first, answers)
    half = (pairs[1::2] - pairs[::2]) / 2
    standard = torch.tensor(half / np.sqrt((half**2).mean(0)))
    signs = torch.tensor(2.0 * answers - 1.0)

    def objective(theta):
        lost = torch.nn.functional.softplus(-2.0 * signs * (standard @ theta)).mean()
        return lost + 0.5 * PENALTY * (theta**2).sum()

    assert torch.allclose(torch.tensor(head.weights_CD[0]), brute_force(objective, 3), atol=1e-6)


def test_units_and_origin_of_the_features_do_not_matter():
    features, labels = classes()
    head = fit_classes(features, labels, num_classes=3)
    moved = features * np.array([1e3, 1e-3, 2.0, 5.0, 0.1]) - 40.0
    twin = fit_classes(moved, labels, num_classes=3)
    assert np.allclose(head.weights_CD, twin.weights_CD, atol=1e-6)
    assert (head.classes(features) == twin.classes(moved)).all()


def test_a_feature_that_only_rounds_is_left_out():
    features, labels = classes()
    noise = 3.0 + 1e-12 * np.random.default_rng(0).standard_normal((60, 1))
    head = fit_classes(np.hstack([features, noise]), labels, num_classes=3)
    assert head.scale_D[-1] == 0.0 and np.abs(head.weights_CD[:, -1]).max() == 0.0
    assert np.allclose(head.weights_CD[:, :-1], fit_classes(features, labels, num_classes=3).weights_CD)
    held = np.hstack([features, 50.0 + noise])
    assert (head.classes(held) == head.classes(np.hstack([features, noise]))).all()


def test_features_that_tell_everything_and_nothing():
    labels = np.arange(40) % 2
    told = fit_classes(np.column_stack([labels, np.ones(40)]) * 1.0, labels, num_classes=2, penalty=1e-3)
    assert told.converged and told.loss < 0.02 and (told.classes(np.eye(2)) == [1, 0]).all()
    blank = fit_classes(np.ones((40, 3)), np.arange(40) % 4 // 3, num_classes=2)
    assert blank.converged and blank.loss == pytest.approx(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    assert (blank.classes(np.zeros((5, 3))) == 0).all()


def test_a_stronger_penalty_gives_a_smaller_head():
    features, labels = classes()
    norms = [np.linalg.norm(fit_classes(features, labels, num_classes=3, penalty=p).weights_CD)
             for p in (1e-3, 1e-2, 1e-1, 1.0)]  # fmt: skip
    assert norms == sorted(norms, reverse=True) and norms[0] > 4 * norms[-1]


def test_a_class_without_examples_is_refused():
    with pytest.raises(UsageError, match="belongs to class 2 of 3") as caught:
        fit_classes(np.eye(4), np.array([0, 1, 0, 1]), num_classes=3)
    assert "--head-examples" in str(caught.value)
