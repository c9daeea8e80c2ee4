"""Names that fit more than one part of a model: the right part, or none."""

from __future__ import annotations

import peft
import pytest
import torch
from odd_families import FAMILIES, WIDTH, t
from safetensors.torch import save_file

from intruscope.adapters.folder import open_adapter
from intruscope.adapters.pairing import pair_adapter
from intruscope.errors import MalformedInput
from intruscope.weights.pairing import pair_checkpoints
from intruscope.weights.prefixes import match_names
from intruscope.weights.source import open_model

pytestmark = pytest.mark.filterwarnings("ignore")


def _blocks(prefix, num_layers=2):
    return [f"{prefix}layers.{i}.{leaf}" for i in range(num_layers) for leaf in ("q_proj", "up_proj")]


@pytest.mark.parametrize(
    ("base", "tuned", "expected"),
    [
        (_blocks("model."), _blocks("model."), ("", "", ())),
        (_blocks("bert."), _blocks(""), ("bert.", "", ())),
        (_blocks("model."), _blocks("transformer."), ("model.", "transformer.", ())),
        # One place of the right length, but the name of its tower is not the adapter's.
        (_blocks("vision.", 3) + _blocks("text."), _blocks("", 3), ("vision.", "", ("vision",))),
        (_blocks("language_model.model."), _blocks("model."), ("language_model.", "", ("text",))),
        # The same tower under another name, and the tower's own name kept.
        (_blocks("model.language."), _blocks("language.model."), ("model.language.", "language.model.", ())),
        (_blocks("m.text_model.") + _blocks("m.vision_model."), _blocks("text_model."), ("m.", "", ())),
        # Few names that agree by chance under two prefixes are no reason to take these off.
        (
            [*_blocks("bert."), "cls.transform.dense"],
            [*_blocks("bert."), "bert.pooler.dense"],
            ("", "", ()),
        ),
        # A head that agrees as it is does not outweigh the body.
        ([*_blocks("model."), "lm_head"], [*_blocks("bert."), "lm_head"], ("model.", "bert.", ())),
    ],
)  # fmt: skip
def test_a_prefix_is_chosen_for_most_names_and_never_trades_towers(base, tuned, expected):
    found = match_names(base, tuned)
    assert (found.base, found.tuned, found.towers) == expected
    assert not found.rivals


@pytest.mark.parametrize(
    ("base", "tuned", "places"),
    [
        (_blocks("vision_model.") + _blocks("text_model."), _blocks(""), {"vision_model.", "text_model."}),
        (_blocks("encoder.") + _blocks("decoder."), _blocks(""), {"encoder.", "decoder."}),
        (_blocks("first.") + _blocks("second."), _blocks("model."), {"first.", "second."}),
    ],
)
def test_names_that_fit_two_places_name_both(base, tuned, places):
    found = match_names(base, tuned)
    assert {found.base, *found.rivals} == places
    # Shapes may leave one of them.
    for place in places:
        found = match_names(base, tuned, fits=lambda one, other, place=place: one.startswith(place))
        assert (found.base, found.rivals) == (place, ())


def test_one_tower_never_stands_for_another():
    found = match_names(_blocks("vision_model."), _blocks("text_model."))
    assert (found.base, found.tuned) == ("", "")


def _adapter(model, folder):
    torch.manual_seed(2)
    names = [
        n
        for n, m in model.named_modules()
        if n.endswith(("q_proj", "query")) and isinstance(m, torch.nn.Linear)
    ]
    model = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=names, init_lora_weights="gaussian")
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    return names


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """SigLIP and a pair of BERTs on disk, and one tower of each with an adapter."""
    folder = tmp_path_factory.mktemp("towers")
    torch.manual_seed(0)
    siglip, pair = FAMILIES["siglip"].make(False), FAMILIES["bert-bert"].make(False)
    siglip.save_pretrained(folder / "siglip")
    pair.save_pretrained(folder / "pair")
    _adapter(t.SiglipTextModel(siglip.config.text_config), folder / "text")
    _adapter(t.SiglipVisionModel(siglip.config.vision_config), folder / "vision")
    _adapter(t.BertModel(pair.config.encoder), folder / "bert")
    t.BertModel(pair.config.encoder).save_pretrained(folder / "bare")
    return folder


def _towers_of(pairing):
    return {pair.name.split(".")[0] for pair in pairing.pairs}


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_an_adapter_of_one_tower_of_siglip_is_never_put_on_the_other(tower, towers):
    """Its names fit both towers, which are of one size."""
    base, adapter = open_model(towers / "siglip"), open_adapter(towers / tower)
    keys = {key.removeprefix("base_model.model.").split(".")[0] for key in adapter.tensors}
    if keys == {f"{tower}_model"}:
        assert _towers_of(pair_adapter(base, adapter)) == keys
        return
    with pytest.raises(
        MalformedInput, match=r"text_model\..* and .*vision_model\.|vision_model\..* and .*text_model\."
    ):
        pair_adapter(base, adapter)


def test_a_bare_encoder_is_not_put_on_one_half_of_an_encoder_decoder(towers):
    base = open_model(towers / "pair")
    with pytest.raises(MalformedInput, match="more than one part of the base") as caught:
        pair_adapter(base, open_adapter(towers / "bert"))
    assert "'encoder.'" in caught.value.fact
    assert "'decoder.bert.'" in caught.value.fact
    # With its pooler it fits the encoder alone. That is said, since its own names do not say so.
    pairing = pair_checkpoints(base, open_model(towers / "bare"))
    assert _towers_of(pairing) == {"encoder"}
    (finding,) = [finding for finding in pairing.findings if finding.code == "prefix"]
    assert finding.severity == "warning"
    assert "'encoder.'" in finding.message


def _blocks_on_disk(folder, names):
    folder.mkdir()
    save_file({f"{name}.weight": torch.randn(6, 6) for name in names}, folder / "model.safetensors")
    return open_model(folder)


def _lora_on_disk(folder, names):
    folder.mkdir()
    factors = {
        f"base_model.model.{name}.lora_{side}.weight": torch.randn(shape)
        for name in names
        for side, shape in (("A", (2, 6)), ("B", (6, 2)))
    }
    save_file(factors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    return open_adapter(folder)


def test_two_towers_may_each_have_a_prefix_of_their_own(tmp_path):
    """transformers 5 calls them otherwise in memory, where adapters are trained, than in files."""
    base = _blocks_on_disk(tmp_path / "base", _blocks("visual.", 3) + _blocks("model."))
    names = _blocks("model.visual.", 3) + _blocks("model.language_model.")
    pairing = pair_adapter(base, _lora_on_disk(tmp_path / "adapter", names))
    assert pairing.complete
    found = {pair.update.down.name.split(".lora_A")[0]: pair.name for pair in pairing.pairs}
    assert found == {
        f"base_model.model.{name}": name.replace("model.visual", "visual").replace("language_model.", "")
        for name in names
    }
    prefixes = [finding.severity for finding in pairing.findings if finding.code == "prefix"]
    assert prefixes == ["info", "warning"]


def test_blocks_that_the_base_lacks_are_not_those_of_another_tower(tmp_path):
    """Another tower has as many blocks as the adapter, but its names agree with those of this one."""
    base = _blocks_on_disk(tmp_path / "base", _blocks("visual.", 4) + _blocks("model."))
    with pytest.raises(MalformedInput, match=r"'visual\.' and the names as they are"):
        pair_adapter(base, _lora_on_disk(tmp_path / "adapter", _blocks("model.", 4)))
    # Nor when the first tower is matched, and a second could take what is left of it.
    base = _blocks_on_disk(tmp_path / "more", _blocks("visual.", 4) + _blocks("model.") + _blocks("x.y.", 2))
    names = _blocks("model.", 3) + _blocks("x.y.", 2)
    pairing = pair_adapter(base, _lora_on_disk(tmp_path / "second", names))
    assert _towers_of(pairing) == {"model", "x"}
    assert not pairing.complete


def test_a_tower_that_only_one_place_fits_is_taken_and_said(tmp_path):
    torch.manual_seed(0)
    text = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "vocab_size": 61,
    }
    vision = {**text, "hidden_size": 24, "intermediate_size": 40, "image_size": 16, "patch_size": 8}
    config = t.SiglipConfig(
        text_config=text, vision_config={k: v for k, v in vision.items() if k != "vocab_size"}
    )
    t.SiglipModel(config).save_pretrained(tmp_path / "base")
    _adapter(t.SiglipTextModel(config.text_config), tmp_path / "adapter")
    pairing = pair_adapter(open_model(tmp_path / "base"), open_adapter(tmp_path / "adapter"))
    assert _towers_of(pairing) == {"text_model"}
    codes = {finding.code: finding.severity for finding in pairing.findings}
    assert codes.get("prefix", "warning") == "warning"
