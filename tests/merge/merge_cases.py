"""Adapters to merge, and the published formulas on explicit updates, in NumPy and without any shortcut."""

from __future__ import annotations

import numpy as np
import torch

from intruscope.merge.rules import Place, merge_space, rule_named
from intruscope.merge.spaces import make_space

SHAPES = {
    "mixed ranks": ((20, 30), (3, 5, 2)),
    "tall": ((30, 20), (4, 4, 4)),
    "more ranks than rows": ((6, 40), (4, 3, 5)),
    "more ranks than columns": ((40, 6), (4, 3, 5)),
    "dense and factors": ((12, 9), (3, None, 2)),
    "all dense": ((8, 11), (None, None)),
}


def forms_of(shape, ranks, seed=0):
    """One update per rank, of different sizes; None is a dense one."""
    rng = np.random.default_rng(seed)
    rows, columns = shape
    forms = []
    for index, rank in enumerate(ranks):
        size = 1.0 + index
        if rank is None:
            forms.append(torch.from_numpy(size * rng.standard_normal(shape)))
        else:
            left, right = rng.standard_normal((rows, rank)), rng.standard_normal((rank, columns))
            forms.append((torch.from_numpy(size * left), torch.from_numpy(right)))
    return forms


def case(name, seed=0):
    return forms_of(*SHAPES[name], seed=seed)


def dense(form):
    """An update as a NumPy matrix."""
    return (form[0].double() @ form[1].double() if isinstance(form, tuple) else form.double()).numpy()


def updates(forms):
    return [dense(form) for form in forms]


def merged(forms, rule, options, *, space="core", basis="update", labels=(), name="m"):
    """What the library makes of one matrix, as a NumPy matrix."""
    made = make_space(forms, space=space, basis=basis)
    return dense(merge_space(made, rule_named(rule), options, Place(name=name, labels=labels)))


def regauged(form, seed=0):
    """The same update from other factors."""
    left, right = form
    rank = left.shape[1]
    rng = np.random.default_rng(seed)
    mixing = torch.from_numpy(rng.standard_normal((rank, rank)) + 2.0 * np.eye(rank))
    return left @ mixing, torch.linalg.solve(mixing, right)


def close(actual, expected, tolerance=1e-10):
    scale = max(float(np.abs(expected).max(initial=0.0)), 1e-300)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def distance(actual, expected):
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


# --- coordinates -----------------------------------------------------------------------------------


def rank_of(values):
    return int((values > 1e-11 * values[0]).sum()) if len(values) else 0


def coordinates(forms, space, basis):
    """(left, parts, right) by dense decompositions."""
    explicit = updates(forms)
    rows, columns = explicit[0].shape
    if space == "dense":
        return np.eye(rows), explicit, np.eye(columns)
    across, down = np.hstack(explicit), np.vstack(explicit)
    if basis == "official":
        across = np.hstack([form[0].double().numpy() for form in forms])
        down = np.vstack([form[1].double().numpy() for form in forms])
    u, values, _ = np.linalg.svd(across, full_matrices=False)
    left = u[:, : rank_of(values)]
    _, values, v_t = np.linalg.svd(down, full_matrices=False)
    right = v_t[: rank_of(values)] if space == "core" else np.eye(columns)
    return left, [left.T @ update @ right.T for update in explicit], right


# --- rules, entry by entry or on explicit updates ----------------------------------------------------


def trimmed(part, density):
    kept = max(1, round(density * part.size))
    threshold = np.sort(np.abs(part), axis=None)[::-1][kept - 1]
    return np.where(np.abs(part) >= threshold, part, 0.0)


def ties(parts, *, density=1.0, weights=None, scaling=1.0):
    weights = weights or [1.0] * len(parts)
    kept = [trimmed(part, density) for part in parts]
    result = np.zeros_like(parts[0])
    for at in np.ndindex(result.shape):
        entries = [weight * part[at] for weight, part in zip(weights, kept, strict=True)]
        sign = np.sign(sum(entries))
        agreeing = [index for index, entry in enumerate(entries) if entry * sign > 0]
        if agreeing:
            total = sum(abs(weights[index]) for index in agreeing)
            result[at] = scaling * sum(entries[index] for index in agreeing) / total
    return result


def tsv(explicit, *, weights=None, scaling=1.0):
    """The polar factor as X (XᵀX)^-1/2, so only for joined vectors that are independent."""
    weights = weights or [1.0] * len(explicit)
    limit = min(explicit[0].shape) // len(explicit)
    lefts, values, rights = [], [], []
    for weight, update in zip(weights, explicit, strict=True):
        u, s, v_t = np.linalg.svd(weight * update, full_matrices=False)
        kept = min(rank_of(s), limit)
        lefts.append(u[:, :kept])
        values.append(s[:kept])
        rights.append(v_t[:kept].T)

    def orthonormal(vectors):
        squares, turned = np.linalg.eigh(vectors.T @ vectors)
        return vectors @ (turned / np.sqrt(squares)) @ turned.T

    return (
        scaling
        * orthonormal(np.hstack(lefts))
        @ np.diag(np.concatenate(values))
        @ orthonormal(np.hstack(rights)).T
    )


def iso(explicit, *, weights=None, scaling=1.0):
    weights = weights or [1.0] * len(explicit)
    total = sum(weight * update for weight, update in zip(weights, explicit, strict=True))
    u, s, v_t = np.linalg.svd(total, full_matrices=False)
    rank = rank_of(s)
    return scaling * sum(s[:rank].mean() * np.outer(u[:, i], v_t[i]) for i in range(rank))


def svc(explicit, *, weights=None, scaling=1.0, floor=1.0):
    weights = weights or [1.0] * len(explicit)
    explicit = [weight * update for weight, update in zip(weights, explicit, strict=True)]
    total = sum(explicit)
    u, s, v_t = np.linalg.svd(total, full_matrices=False)
    result = np.zeros_like(total)
    for r in range(rank_of(s)):
        along = u[:, r] @ total
        factors = []
        for update in explicit:
            own = u[:, r] @ update
            absent = np.linalg.norm(own) < 1e-6 * np.linalg.norm(along)
            factors.append(floor if absent else max((along @ own) / (own @ own), floor))
        result += scaling * s[r] / np.mean(factors) * np.outer(u[:, r], v_t[r])
    return result


def pico(explicit, *, joined=None, weights=None, scaling=1.0):
    """``joined``: the matrix whose left singular vectors are calibrated; [ΔW_1 | ... | ΔW_T] by default."""
    weights = weights or [1.0] * len(explicit)
    joined = np.hstack(explicit) if joined is None else joined
    squares, u = np.linalg.eigh(joined @ joined.T)
    shares = squares / squares.sum()
    rows = len(u)
    turned = np.eye(rows) + u @ (np.diag(1.0 / (1.0 + (len(explicit) - 1) * shares)) - np.eye(rows)) @ u.T
    weighted = [weight * update for weight, update in zip(weights, explicit, strict=True)]
    total = sum(turned @ update for update in weighted)
    norm = np.mean([np.linalg.norm(update) for update in weighted])
    return scaling * norm / np.linalg.norm(total) * total


SPECTRAL = {"tsv": tsv, "iso": iso, "svc": svc, "pico": pico}
