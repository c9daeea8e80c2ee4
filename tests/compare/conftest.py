import pytest
import torch
from compare_models import SHAPE, module, random_factors, write_lora

from cli_support import write_model  # isort: skip


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A base of two matrices; adapters ``a``, ``b``, and ``c`` with the A of ``a``; ``full`` checkpoint."""
    folder = tmp_path_factory.mktemp("compare")
    generator = torch.Generator().manual_seed(0)
    tensors = {f"{module(layer)}.weight": torch.randn(SHAPE, generator=generator) for layer in range(2)}
    write_model(folder / "base", tensors)
    factors = {name: random_factors(seed, rank=3 + seed) for seed, name in enumerate("ab")}
    factors["c"] = {layer: (left, factors["a"][layer][1]) for layer, (left, _) in random_factors(7).items()}
    for name, scaling in (("a", 2.0), ("b", 1.0), ("c", 1.0)):
        write_lora(folder / name, factors[name], scaling=scaling)
    changed = {
        name: tensors[name] + 2.0 * factors["a"][layer][0] @ factors["a"][layer][1]
        for layer, name in enumerate(tensors)
    }
    write_model(folder / "full", changed)
    return folder
