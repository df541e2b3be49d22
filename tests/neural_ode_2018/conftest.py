"""A folder in MNIST's format."""

import pytest
import torch

from tests.neural_ode_2018.mnist_files import write_mnist


@pytest.fixture(scope="module")
def mnist_folder(tmp_path_factory):
    torch.manual_seed(0)
    return write_mnist(tmp_path_factory.mktemp("mnist"))
