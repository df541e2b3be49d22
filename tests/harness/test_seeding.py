import random

import numpy as np
import pytest
import torch

from harness.checkpoint import load_checkpoint, save_checkpoint
from harness.seeding import generator, random_state, restore_random_state, seed_everything


def draw():
    """One number of every global stream; the Gaussians exercise the second value that python and numpy hold back."""
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1).item()


@pytest.mark.parametrize("draws_before", [0, 1])
def test_state_survives_a_checkpoint(tmp_path, draws_before):
    seed_everything(5)
    for _ in range(draws_before):
        draw()
    save_checkpoint(tmp_path / "c.pt", random_state(), kind="toy")
    expected = [draw() for _ in range(3)]
    restore_random_state(load_checkpoint(tmp_path / "c.pt", kind="toy"))
    assert [draw() for _ in range(3)] == expected


@pytest.mark.gpu
def test_cuda_state_round_trip():
    seed_everything(5)
    torch.rand(1, device="cuda")
    state = random_state()
    expected = torch.rand(4, device="cuda")
    restore_random_state(state)
    assert torch.equal(torch.rand(4, device="cuda"), expected)


def test_seed_decides_every_stream():
    seed_everything(1)
    first = draw()
    seed_everything(1)
    assert draw() == first
    seed_everything(2)
    assert all(a != b for a, b in zip(draw(), first))


def test_generator_depends_on_nothing_but_its_keys():
    first = torch.rand(8, generator=generator("cpu", 0, 1, 2))
    torch.manual_seed(99)
    assert torch.equal(torch.rand(8, generator=generator("cpu", 0, 1, 2)), first)


def test_generators_of_different_keys_are_independent():
    keys = [(seed, epoch, batch) for seed in range(4) for epoch in range(4) for batch in range(64)]
    samples = torch.stack([torch.rand(16, generator=generator("cpu", *key)) for key in keys])
    assert len(set(samples[:, 0].tolist())) == len(keys)
    # 16,384 uniforms: their mean is within 5 standard errors, and neighbouring keys are uncorrelated, of size 1/sqrt(n)
    assert abs(samples.mean() - 0.5) < 5 * (1 / 12 / samples.numel()) ** 0.5
    pairs = torch.stack([samples[:-1].flatten(), samples[1:].flatten()])
    assert abs(torch.corrcoef(pairs)[0, 1]) < 5 / pairs.shape[1] ** 0.5


@pytest.mark.parametrize("other", [(1, 0), (0,), (0, 1, 0), ("0", 1), ("0,1",)])
def test_keys_are_not_confused(other):
    assert generator("cpu", *other).initial_seed() != generator("cpu", 0, 1).initial_seed()
