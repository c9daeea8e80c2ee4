"""Real tiny models with several fine-tunes each, and the naive float64 view of what a merge should be."""

import atexit
import copy
import functools
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers.pytorch_utils import Conv1D

sys.path.insert(0, str(Path(__file__).parents[1] / "adapters"))
import peft_models

TEXT = torch.arange(3, 27).reshape(2, 12)

CASES = {
    # Mixed ranks and scalings, and modules that only one of the two changes.
    "llama": (
        peft_models.llama,
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
        {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "up_proj"], "use_rslora": True},
    ),
    "gpt2": (
        peft_models.gpt2,
        {"r": 2, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True},
        {"r": 5, "target_modules": ["c_attn", "mlp.c_proj"], "fan_in_fan_out": True},
    ),
    "embedding": (
        peft_models.llama,
        {"r": 2, "target_modules": ["embed_tokens", "q_proj"]},
        {"r": 3, "target_modules": ["embed_tokens"]},
    ),
    "fused": (
        peft_models.phi3,
        {"r": 2, "target_modules": ["qkv_proj", "gate_up_proj"]},
        {"r": 3, "target_modules": ["qkv_proj"]},
    ),
    "interleaved": (
        peft_models.gpt_neox,
        {"r": 2, "target_modules": ["query_key_value"]},
        {"r": 3, "target_modules": ["query_key_value", "dense"]},
    ),
    "dora": (
        peft_models.llama,
        {"r": 2, "target_modules": ["q_proj"], "use_dora": True},
        {"r": 3, "target_modules": ["q_proj", "up_proj"]},
    ),
    "patterns": (
        peft_models.llama,
        {
            "r": 2, "target_modules": ["q_proj", "v_proj"],
            "rank_pattern": {"v_proj": 5}, "alpha_pattern": {"q_proj": 9},
        },
        {"r": 3, "target_modules": ["q_proj", "v_proj"]},
    ),
}  # fmt: skip


class Family:
    """A base and adapters of it, named ``a`` and ``b``, in memory and on disk."""

    def __init__(self, name):
        self.folder = Path(tempfile.mkdtemp(prefix="merge-"))
        atexit.register(shutil.rmtree, self.folder, ignore_errors=True)
        make, *configs = CASES[name]
        torch.manual_seed(0)
        self.base = make().eval()
        self.base.save_pretrained(self.folder / "base")
        self.names = [self.folder / "base"]
        for label, config in zip("ab", configs, strict=True):
            self.add(label, config, seed=ord(label))

    def add(self, label, config, *, seed=0, dtype=torch.float32):
        """Train, so to speak, one more adapter."""
        model = get_peft_model(self.fresh(), LoraConfig(**config))
        generator = torch.Generator().manual_seed(seed)
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                # Magnitudes of DoRA stay positive, as training leaves them.
                parameter.data = (parameter.data + (noise.abs() if "magnitude" in key else 0.3 * noise)).to(
                    dtype
                )
        model.save_pretrained(self.folder / label)
        self.names.append(self.folder / label)
        return self.folder / label

    def fresh(self):
        return type(self.base).from_pretrained(self.folder / "base").eval()

    def loaded(self, adapter):
        """The base with an adapter on it, by PEFT alone."""
        return PeftModel.from_pretrained(self.fresh(), adapter).eval()

    def deltas(self, adapter):
        """By module, what PEFT's merge adds to it: (out, in), float64."""
        return changes(self.base, self.loaded(adapter).double().merge_and_unload())

    def with_deltas(self, deltas):
        """The base with these updates in it."""
        made = self.fresh().double()
        for name, delta in deltas.items():
            weight = made.get_submodule(name).weight
            weight.data += delta.T if is_turned(made, name) else delta
        return made


@functools.cache
def family(name):
    """Made once for all tests."""
    return Family(name)


def is_turned(model, name):
    """Whether the module stores (in, out)."""
    return isinstance(model.get_submodule(name), (Conv1D, torch.nn.Embedding))


def changes(before, after):
    """By module, what differs: (out, in), float64."""
    found = {}
    old = dict(before.named_modules())
    for name, module in after.named_modules():
        weight = getattr(module, "weight", None)
        if weight is None or weight.ndim < 2:
            continue
        change = weight.detach().double() - old[name].weight.detach().double()
        if change.any():
            found[name] = change.T if is_turned(after, name) else change
    return found


def fine_tuned(base, seed, size=0.05):
    """Every number of a model moved."""
    made = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        parameter.data += size * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return made


def logits(model):
    with torch.no_grad():
        return model.double().eval()(input_ids=TEXT).logits
