"""Two published adapters of GPT-2, against figures that were computed apart from this program."""

import math
import statistics

import pytest

import intruscope
from intruscope.engine.settings import RunOptions

pytestmark = pytest.mark.real


def test_two_published_adapters(real_data):
    folder = real_data / "adapters"
    report = intruscope.compare(
        folder / "gpt2-seqcls-a", folder / "gpt2-seqcls-b", options=RunOptions(workers=0)
    )
    (pair,) = report.pairs
    assert len(pair.modules) == 36
    layers = [int(each.name.split(".")[2]) for each in pair.modules]
    assert layers == sorted(layers)  # not by name, where 10 comes before 2
    by_kind = {}
    for each in pair.modules:
        cosines = [[math.cos(angle) for angle in angles] for angles in (each.left_angles, each.right_angles)]
        left, right = map(statistics.mean, cosines)
        by_kind.setdefault(each.name.split(".", 3)[3], []).append((left, right, cosines[0][0]))
    means = {
        kind: [statistics.mean(each) for each in zip(*rows, strict=True)] for kind, rows in by_kind.items()
    }
    assert statistics.mean(row[1] for row in means.values()) == pytest.approx(0.078, abs=0.001)  # of A
    assert {round(row[0], 2) for row in means.values()} == {0.16, 0.17, 0.18}  # of B
    assert {round(row[2], 2) for row in means.values()} == {0.40, 0.42, 0.45}  # the best direction of B
    assert statistics.mean(each.cosine for each in pair.modules) == pytest.approx(0.022, abs=0.001)
    assert statistics.mean(each.sign_conflict for each in pair.modules) == pytest.approx(0.494, abs=0.001)
    ratios = [math.sqrt(max(each.energies) / min(each.energies)) for each in report.merge.modules]
    assert statistics.mean(ratios) == pytest.approx(5.7, abs=0.05)
    assert (min(ratios), max(ratios)) == pytest.approx((2.2, 13.9), abs=0.05)
    # They did not start from one A: its overlap is near chance, that of B is not.
    assert not [finding for finding in report.findings if finding.code == "shared-start"]
    assert pair.right_overlap < 1.5 * pair.right_overlap_random
    assert pair.left_overlap > 5 * pair.left_overlap_random
    assert abs(pair.cosine) > 20 * pair.cosine_shared_a_spread
    assert report.fine_tunes[0].share > 0.95  # an equal-weight merge is nearly the first
