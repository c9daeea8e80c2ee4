"""Real tiny models, tuned ones of them, and the naive float64 view of what an extraction should be."""

import copy
import sys
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from transformers.pytorch_utils import Conv1D

from intruscope.engine.settings import RunOptions
from intruscope.extract import extract

sys.path.insert(0, str(Path(__file__).parents[1] / "adapters"))
import peft_models

INLINE = RunOptions(workers=0)
TEXT = torch.arange(3, 27).reshape(2, 12)


def trained_bert():
    """A classifier and a full fine-tune of it by a few steps: everything moves, biases and norms too."""
    torch.manual_seed(0)
    base = peft_models.bert().eval()
    tuned = copy.deepcopy(base)
    optimizer = torch.optim.AdamW(tuned.parameters(), lr=3e-3)
    labels = torch.tensor([0, 1])
    for _ in range(6):
        optimizer.zero_grad()
        tuned(input_ids=TEXT, labels=labels).loss.backward()
        optimizer.step()
    return base, tuned.eval()


def moved(make, size=0.05):
    """A model and the same with every number moved."""
    torch.manual_seed(0)
    base = make().eval()
    tuned = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(5)
    for parameter in tuned.parameters():
        parameter.data += size * torch.randn(parameter.shape, generator=generator)
    return base, tuned


MAKERS = {
    "bert": trained_bert,
    "llama": lambda: moved(peft_models.llama),
    "gpt2": lambda: moved(peft_models.gpt2),
    "tied": lambda: moved(peft_models.tied_llama),
    "phi3": lambda: moved(peft_models.phi3),
    "neox": lambda: moved(peft_models.gpt_neox),
    "bloom": lambda: moved(peft_models.bloom),
    "mixtral": lambda: moved(peft_models.mixtral),
}


class Pair:
    """A base and a tuned model, in memory and on disk."""

    def __init__(self, name, folder):
        self.base, self.tuned = MAKERS[name]()
        self.folder = folder
        self.base.save_pretrained(folder / "base")
        self.tuned.save_pretrained(folder / "tuned")
        self.names = (str(folder / "base"), str(folder / "tuned"))

    def plan(self, **options):
        return extract(*self.names, options=INLINE, **options)

    def loaded(self, adapter):
        """The base with an adapter on it, by PEFT alone."""
        return PeftModel.from_pretrained(
            type(self.base).from_pretrained(self.folder / "base"), adapter
        ).eval()


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=TEXT).logits.double()


def layers(model):
    """The linear layers of the blocks, by name."""
    kinds = (torch.nn.Linear, Conv1D)
    return {n: m for n, m in model.named_modules() if isinstance(m, kinds) and ("layer" in n or ".h." in n)}


def update(before, after):
    """(out, in), float64."""
    change = after.weight.detach().double().numpy() - before.weight.detach().double().numpy()
    return change.T if isinstance(before, Conv1D) else change


def truncated(matrix, rank):
    """The closest matrix of a rank, by numpy."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


def truncated_model(base, tuned, rank):
    """The base with the truncated update in every linear layer of its blocks, and nothing else."""
    made = copy.deepcopy(base)
    after = layers(tuned)
    for name, layer in layers(made).items():
        closest = truncated(update(layer, after[name]), rank)
        closest = closest.T if isinstance(layer, Conv1D) else closest
        layer.weight.data += torch.from_numpy(np.ascontiguousarray(closest)).float()
    return made


def relative(found, expected, start):
    """The difference, over what the change of the model makes."""
    return float((found - expected).norm() / (start - expected).norm())
