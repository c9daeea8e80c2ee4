"""The map of one matrix and its two profiles, against dense float64; and which matrix of which runs."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from intruscope.spectra.scan import plan
from intruscope.studies.recipes import StudyCell, is_pictured, places
from intruscope.studies.scales import MINI
from intruscope.studies.similarity import MAP_SIZE, chosen_matrix, similarity_figures

SIZE, LAYERS, MIDDLE = 40, 3, "model.layers.1.self_attn.o_proj"


def weights(*, planted, kind="o_proj"):
    rng = np.random.default_rng(3)
    base, tuned = {}, {}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}.self_attn.{kind}"
        left, right = (np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0] for _ in range(2))
        base[name] = (left * np.linspace(10, 1, SIZE)) @ right.T
        u, v = (each / np.linalg.norm(each) for each in rng.normal(size=(2, SIZE)))
        # A column that is new and one that only grew: the map must tell them apart, and which side is down.
        update = 30.0 * np.outer(u, v) if planted else 20.0 * np.outer(left[:, 4], right[:, 4])
        tuned[name] = base[name] + update
    return base, tuned


def saved(folder, name, matrices):
    (folder / name).mkdir()
    tensors = {f"{key}.weight": torch.tensor(matrix) for key, matrix in matrices.items()}
    save_file(tensors, folder / name / "model.safetensors")
    return str(folder / name)


def figures(folder, **options):
    base, tuned = weights(**options)
    found = similarity_figures(saved(folder, "base", base), saved(folder, "tuned", tuned))["similarity"]
    return found, base, tuned


def cosines(base, tuned):
    return np.abs(np.linalg.svd(base)[0].T @ np.linalg.svd(tuned)[0])


def test_the_map_is_that_of_two_dense_decompositions(tmp_path):
    found, base, tuned = figures(tmp_path, planted=True)
    assert found["matrix"] == MIDDLE
    assert (found["num_base"], found["num_tuned"]) == (MAP_SIZE, MAP_SIZE)
    expected = 100 * cosines(base[MIDDLE], tuned[MIDDLE])[:MAP_SIZE, :MAP_SIZE]
    shown = np.array(found["hundredths"]).reshape(MAP_SIZE, MAP_SIZE)
    assert np.abs(shown - expected).max() <= 0.5 + 1e-9
    assert shown[:, 0].max() < 50  # the blank column is the first tuned vector, not the first base vector
    assert shown[0].max() > 80


def test_the_profiles_are_whole_columns_of_the_first_intruder_and_the_first_other(tmp_path):
    found, base, tuned = figures(tmp_path, planted=True)
    whole = 100 * cosines(base[MIDDLE], tuned[MIDDLE])
    places = {name: each["place"] for name, each in found["profiles"].items()}
    assert places == {"intruder": 0, "other": 1}
    for each in found["profiles"].values():
        assert len(each["hundredths"]) == SIZE
        assert np.abs(np.array(each["hundredths"]) - whole[:, each["place"]]).max() <= 0.5 + 1e-9


def test_a_base_vector_that_grew_is_no_intruder(tmp_path):
    found, _, _ = figures(tmp_path, planted=False)
    assert set(found["profiles"]) == {"other"}
    shown = np.array(found["hundredths"]).reshape(MAP_SIZE, MAP_SIZE)
    assert shown[4, 0] == 100


def test_a_model_without_an_output_projection_has_no_map(tmp_path):
    found, _, _ = figures(tmp_path, planted=True, kind="q_proj")
    assert found is None


def test_the_middle_layer_of_an_even_number_is_the_upper_one(tmp_path):
    base, _ = weights(planted=True)
    even = {name: matrix for name, matrix in base.items() if ".2." not in name}
    model = saved(tmp_path, "base", even)
    chosen = chosen_matrix(plan(model, model).pairs)
    assert chosen is not None
    assert chosen.layer == 1


def test_the_counts_of_the_first_seed_alone_are_pictured():
    pictured = {
        (p.recipe, p.arm, p.task, p.seed)
        for p in places(MINI, ("counts",))
        if is_pictured(p.work, MINI.base(p.work.base))
    }
    assert pictured == {("counts", p.arm, p.task, 0) for p in places(MINI, ("counts",)) if p.seed == 0}
    base = MINI.bases[0]
    cell = StudyCell(base, base.tasks[0], 0)
    assert not is_pictured(cell.lora(8, base.rates.high), base)
    assert not is_pictured(cell.alpha8(16), base)


@pytest.mark.parametrize("planted", [True, False])
def test_a_map_takes_little_room(tmp_path, planted):
    """Twenty-four such runs at mini scale stay far below a megabyte."""
    import json

    found, _, _ = figures(tmp_path, planted=planted)
    assert len(json.dumps(found)) < 8_000
