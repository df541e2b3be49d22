"""A network in training on MNIST."""

import math

import torch
from torch.nn import functional

from harness.seeding import seed_everything
from harness.solvers import solver_of
from harness.training import Training
from neural_ode_2018.mnist.models import SOLVED, Network

MOMENTUM = 0.9


class MNISTTraining(Training):
    """A step is one batch of images, cropped at random."""

    def __init__(self, settings, images, device):
        self.images = images
        seed_everything(settings["seed"])
        model = Network(settings["model"], solver_of(settings)).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=settings["lr"], momentum=MOMENTUM)
        super().__init__(settings, model, optimizer, math.ceil(len(images.train) / settings["batch_size"]))

    def learning_rate(self):
        return self.settings["lr"] * 0.1 ** sum(self.epoch >= drop for drop in self.settings["drops"])

    def loss(self):
        batches = self.images.training_batches(
            self.settings["batch_size"],
            seed=self.settings["seed"],
            epoch=self.epoch,
            first=self.step % self.batches,
        )
        images, labels = next(batches)
        logits = self.model(images)
        wrong = (logits.argmax(1) != labels).float().mean()
        return functional.cross_entropy(logits, labels), {"Train/Error": wrong}, self.model.stats

    def line(self, scalars):
        evaluations = f", NFE {scalars['Solver/Forward']:.1f}" if "Solver/Forward" in scalars else ""
        return f"epoch {self.epoch}: loss {scalars['Train/Loss']:.4f}, error {scalars['Train/Error']:.2%}{evaluations}"

    def summary(self):
        return {"evaluations": self.evaluations if self.settings["model"] in SOLVED else None}
