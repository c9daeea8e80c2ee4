import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Training beside other tests must not make more threads than there are cores: they would spin."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
