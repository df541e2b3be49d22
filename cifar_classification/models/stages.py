"""What the networks have in common: a stem, four stages of two blocks, a head."""

from torch import nn

from cifar_classification.models.blocks import make_block


class Stages(nn.Module):
    """stem, then per stage a discrete block that sets stride and width and a block that keeps the shape, then head.

    Args:
        stem, head: modules.
        first: the discrete block of every stage.
        second: the shape-preserving block of every stage: a module x -> x, or with ``solver`` a vector field (t, z).
        solver: keywords of `make_block`, for every second block, over [0, 1]; None for a discrete network.
    """

    def __init__(self, *, stem, first, second, head, solver):
        super().__init__()
        if solver is not None:
            second = [make_block(field, **solver) for field in second]
        self.stem = stem
        self.stages = nn.ModuleList(nn.Sequential(*blocks) for blocks in zip(first, second))
        self.head = head

    def forward(self, x):
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(x)
