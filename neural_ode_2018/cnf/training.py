"""A flow in training: maximum likelihood of samples, or the divergence from a known density."""

import torch

from harness.seeding import generator, seed_everything
from harness.solvers import solver_of
from harness.training import Training
from neural_ode_2018.cnf.data import KNOWN, log_constant, log_density, samples
from neural_ode_2018.cnf.models import SOLVED, build, log_normal
from neural_ode_2018.cnf.models import log_density as flow_log_density

EPOCH = 50  # steps


class CNFTraining(Training):
    """A step takes new samples: of the data, of whose log-density it lessens the negative mean; or of the flow, whose
    divergence KL(flow || target) it lessens. One noise for the trace's estimate lasts for a whole solve."""

    def __init__(self, settings, device):
        self.device, self.known = device, settings["density"] in KNOWN
        self.constant = log_constant() if self.known else 0.0
        seed_everything(settings["seed"])
        model = build(settings, self.known).to(device)
        kind = torch.optim.Adam if settings["model"] in SOLVED else torch.optim.RMSprop
        super().__init__(settings, model, kind(model.parameters(), lr=settings["lr"]), EPOCH)

    def loss(self):
        settings = self.settings
        keys, count = (settings["seed"], "train", self.step), settings["batch_size"]
        solver, noise = solver_of(settings), None
        if settings["trace"] == "hutchinson":
            noise = torch.randn(count, 2, generator=generator("cpu", *keys, "noise")).to(self.device)
        if self.known:
            z = torch.randn(count, 2, generator=generator("cpu", *keys)).to(self.device)
            x, change, stats = self.model.push(z, solver, noise)
            loss = (log_normal(z) + change - log_density(x)).mean() + self.constant
        else:
            x = samples(settings["density"], count, *keys).to(self.device)
            density, stats = flow_log_density(self.model, x, solver, noise)
            loss = -density.mean()
        return loss, {}, stats

    def summary(self):
        return {"evaluations": self.evaluations if self.settings["model"] in SOLVED else None}
