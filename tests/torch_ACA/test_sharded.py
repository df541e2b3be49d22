"""Weights that FSDP shards: gathered for the model's forward and backward pass, and freed in between.

One process is enough: FSDP takes the same ways as with several, and its gathers are copies.
"""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from torch_ACA import ODEBlock

pytestmark = pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")  # of what in-place changes of its result do
OF_FUNC = [
    {}, {"memory": "states"}, {"gradient": "direct"}, {"gradient": "naive"}, {"gradient": "mali", "method": "ALF"},
]  # fmt: skip
ALL = [*OF_FUNC, {"gradient": "adjoint"}, {"per_sample": True}]


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, t, y):
        return torch.tanh(self.layer(y)) * torch.cos(t)


@pytest.fixture
def mesh():
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize(("around", "keywords"), [
    *(("model", keywords) for keywords in (*ALL, {"compile": True})), *(("block", keywords) for keywords in ALL),
    *(("func", keywords) for keywords in OF_FUNC),
], ids=str)  # fmt: skip
def test_gradients_of_sharded_weights(around, keywords, mesh, ungenerated):
    torch.manual_seed(0)
    block = ODEBlock(Field(), **{"method": "RK23", "rtol": 1e-3, "atol": 1e-3} | keywords)  # few evaluations
    plain = nn.Sequential(nn.Linear(3, 4), block, nn.Linear(4, 1)).double()
    sharded, x = copy.deepcopy(plain), torch.randn(5, 3, dtype=torch.float64)
    for part in {"model": (), "block": (sharded[1],), "func": (sharded[1].func,)}[around]:
        fully_shard(part, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    for _ in range(2):
        for model in (plain, sharded):
            model(x).square().mean().backward()
    for parameter, other in zip(plain.parameters(), sharded.parameters(), strict=True):
        torch.testing.assert_close(other.grad.full_tensor(), parameter.grad, rtol=1e-12, atol=0)
