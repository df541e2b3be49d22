"""Seeds, the state of every global random stream as tensors, and stateless generators."""

import hashlib
import json
import random

import numpy as np
import torch


def seed_everything(seed):
    """Seed python's, numpy's and torch's (all devices) global random streams; 0 <= seed < 2**32."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state():
    """The states of the global random streams: a dict of tensors, so that ``torch.load(weights_only=True)`` reads it.

    ``cuda`` has one row per device, none without CUDA or before its first use.
    """
    _, words, gauss = random.getstate()
    _, key, position, has_gauss, cached = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.tensor([*key.tolist(), position, has_gauss], dtype=torch.int64),
        "numpy_gauss": torch.tensor([cached], dtype=torch.float64),
        "torch": torch.get_rng_state(),
        "cuda": torch.stack(cuda) if cuda else torch.empty(0, 0, dtype=torch.uint8),
    }


def restore_random_state(state):
    """Undo to :func:`random_state`. CUDA states are restored for as many devices as both machines have."""
    gauss = state["python_gauss"].tolist()
    random.setstate((3, tuple(state["python"].tolist()), gauss[0] if gauss else None))
    *key, position, has_gauss = state["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(key, dtype=np.uint32), position, has_gauss, state["numpy_gauss"].item()))
    torch.set_rng_state(state["torch"].cpu())
    for device, device_state in zip(range(torch.cuda.device_count()), state["cuda"].cpu()):
        torch.cuda.set_rng_state(device_state, device)


def generator(device, *keys):
    """A torch.Generator on ``device`` seeded from a hash of ``keys`` (integers and strings, e.g. seed, epoch, batch).

    It has no history: a resumed run that asks for the same keys draws the same numbers.
    """
    digest = hashlib.sha256(json.dumps(keys).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little"))
