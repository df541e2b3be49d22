"""An ODE block inside a Lightning module: two rings of points are told apart."""

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from torch_ACA import ODEBlock


class Field(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, width))

    def forward(self, t, z):
        return self.net(z)


class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.block = ODEBlock(Field(4), method="RK12", rtol=1e-2, atol=1e-2)
        self.model = nn.Sequential(nn.Linear(2, 4), self.block, nn.Linear(4, 2))

    def training_step(self, batch):
        points, labels = batch
        logits = self.model(points)
        self.log("evaluations", float(self.block.stats.n_f_evals))
        return nn.functional.cross_entropy(logits, labels)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


lightning.seed_everything(0)
angle, labels = 6.28 * torch.rand(1024), torch.randint(2, (1024,))
points = (1.0 + labels + 0.1 * torch.randn(1024))[:, None] * torch.stack([angle.cos(), angle.sin()], -1)
loader = DataLoader(TensorDataset(points, labels), batch_size=64, shuffle=True)
classifier = Classifier()
trainer = lightning.Trainer(
    max_epochs=10, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
)
trainer.fit(classifier, loader)
with torch.no_grad():
    accuracy = (classifier.model(points).argmax(1) == labels).float().mean().item()
print(f"accuracy {accuracy:.1%}")
