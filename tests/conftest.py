"""Fixtures for all tests."""

import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """On shared cores, threads that wait for each other take longer than the small tensors of most tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
