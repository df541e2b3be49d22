"""The networks, and what can be asked of their ODE blocks."""

import torch
from torch import nn

from cifar_classification.models.blocks import TorchdiffeqBlock
from cifar_classification.models.resnet import ResNet
from cifar_classification.models.sqnxt import SqueezeNext
from torch_ACA import ODEBlock

NETWORKS = {"resnet": ResNet, "sqnxt": SqueezeNext}
BLOCKS = (ODEBlock, TorchdiffeqBlock)
STATS = ("n_f_evals", "n_backward_f_evals", "n_accepted", "n_rejected")


def ode_blocks(model):
    """The ODE blocks of ``model``, from the input to the output; none in a discrete network."""
    return [module for module in model.modules() if isinstance(module, BLOCKS)]


def set_solver(model, **settings):
    """Solve every block, all of them torch_ACA's, with other settings (keywords of ODEBlock.configure) from now on."""
    for block in ode_blocks(model):
        block.configure(**settings)


def solver_stats(model):
    """What the last call of ``model`` (and of backward) cost: int64 [blocks, 4], the columns as named in STATS; where
    images take steps of their own, the most of any image."""
    rows = [[_most(getattr(block.stats, name)) for name in STATS] for block in ode_blocks(model)]
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, len(STATS))


def _most(count):
    return int(count.max()) if isinstance(count, torch.Tensor) else count or 0


@torch.no_grad()
def scale_fields(model, scale):
    """Set the weight of every vector field's last BatchNorm: with a small one the solver starts with few steps."""
    _scale_last_norm((block.func for block in ode_blocks(model)), scale)


@torch.no_grad()
def scale_branches(model, scale):
    """The same of the residual branch in the second block of every stage of a discrete network."""
    _scale_last_norm((second.residual for _, second in model.stages), scale)


def _scale_last_norm(parts, scale):
    for part in parts:
        *_, last = (module for module in part.modules() if isinstance(module, nn.BatchNorm2d))
        last.weight.fill_(scale)


def parameter_count(model):
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
