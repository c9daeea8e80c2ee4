"""The public way in: arrays from NumPy, the documented example, and inputs that make no sense."""

import doctest

import numpy as np
import pytest
import torch
from linalg_oracle import naive_alignment

import intruscope
from intruscope.errors import ShapeMismatch
from intruscope.linalg import analysis


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(48, 36)) / 6
    left, right = rng.normal(size=(48, 3)), rng.normal(size=(3, 36)) / 3
    return base, left, right


def test_the_example_of_the_docstring_runs():
    tried = doctest.testmod(analysis)
    assert (tried.failed, tried.attempted > 5) == (0, True)


def test_arrays_and_tensors_give_what_two_dense_decompositions_do(pair):
    base, left, right = pair
    truth = naive_alignment(base, base + left @ right, 10)
    whole = intruscope.linalg.analyse(base, tuned_OI=base + left @ right, k=10)
    factors = intruscope.linalg.analyse(torch.from_numpy(base), left_OR=left, right_RI=right, k=10)
    for found in (whole, factors):
        side = found.sides["left"]
        np.testing.assert_allclose(side.lower, truth.alignment, atol=1e-9)
        np.testing.assert_allclose(side.upper, truth.alignment, atol=1e-9)
        assert found.is_intruder(0.5).tolist() == (truth.alignment < 0.5).tolist()
        values = np.linalg.svd(base + left @ right, compute_uv=False)[:10]
        np.testing.assert_allclose(found.spectrum.singular_values, values, rtol=1e-9)
    assert whole.is_intruder().any()
    assert not whole.is_intruder().all()


@pytest.mark.parametrize("kind", ["float32", "float16", ">f4", "int8"])
def test_other_number_types_are_read_and_the_given_arrays_stay_as_they_are(pair, kind):
    base = (pair[0] * 4).astype(kind)
    tuned = (pair[0] * 4 + pair[1] @ pair[2]).astype(kind)
    base.flags.writeable = tuned.flags.writeable = False
    kept = base.copy(), tuned.copy()
    found = intruscope.linalg.analyse(base, tuned_OI=tuned[::1], k=5)
    same = intruscope.linalg.analyse(
        torch.from_numpy(base.astype("float32")), tuned_OI=torch.from_numpy(tuned.astype("float32")), k=5
    )
    assert torch.equal(found.sides["left"].upper, same.sides["left"].upper)
    assert np.array_equal(base, kept[0])
    assert np.array_equal(tuned, kept[1])


def test_bfloat16_tensors_are_read():
    base = torch.randn(40, 30, generator=torch.Generator().manual_seed(1)).bfloat16()
    found = intruscope.linalg.analyse(base, tuned_OI=base.clone(), k=5)
    assert found.sides["left"].lower.tolist() == [1.0] * 5


def test_what_does_not_fit_is_refused(pair):
    base, left, right = pair
    with pytest.raises(ShapeMismatch, match=r"the base is \(48, 36\), the update \(36, 48\)"):
        intruscope.linalg.analyse(base, tuned_OI=base.T)
    with pytest.raises(ShapeMismatch, match="factors are"):
        intruscope.linalg.analyse(base, left_OR=left, right_RI=right.T)
    with pytest.raises(ValueError, match="give either tuned_OI or both"):
        intruscope.linalg.analyse(base, left_OR=left)
    with pytest.raises(ValueError, match="not empty"):
        intruscope.linalg.analyse(base[0], tuned_OI=base[0])
    broken = base.copy()
    broken[3, 4] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        intruscope.linalg.analyse(base, tuned_OI=broken)
