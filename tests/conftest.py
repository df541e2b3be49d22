import pytest
import torch


def pytest_addoption(parser):
    parser.addoption("--default-device", metavar="DEVICE", help="where tests make their tensors, such as cuda")


def pytest_configure(config):
    if config.getoption("--default-device"):
        torch.set_default_device(config.getoption("--default-device"))


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
