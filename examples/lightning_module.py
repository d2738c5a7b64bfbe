"""A Dr²Net whose (α, β) move, in a LightningModule; without Lightning, in a loop that does as it.

python examples/lightning_module.py
"""

import timm
import torch

import dr2net

try:
    from lightning import LightningModule, Trainer
except ImportError:
    LightningModule, Trainer = torch.nn.Module, None


class Finetuning(LightningModule):
    def __init__(self, name="vit_tiny_patch16_224", steps=1000, **options):
        super().__init__()
        self.network = dr2net.convert(timm.create_model(name, **options), alpha=1.0, beta=0.1)
        end = steps // 2  # (α, β) move in the first half of the run
        self.schedule = dr2net.CoefficientSchedule(alpha=(1.0, 0.0), beta=(0.1, 1.0), end=end)

    def on_train_batch_start(self, batch, batch_idx):
        self.schedule.apply(self.network, self.global_step)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return torch.nn.functional.cross_entropy(self.network(images), labels)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


def fit(module, batches):
    if Trainer is not None:
        Trainer(max_epochs=1, logger=False, enable_checkpointing=False).fit(module, batches)
        return
    optimizer = module.configure_optimizers()
    for module.global_step, batch in enumerate(batches):
        module.on_train_batch_start(batch, module.global_step)
        module.training_step(batch, module.global_step).backward()
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    data = [(torch.randn(8, 3, 224, 224), torch.randint(10, (8,))) for _ in range(20)]
    fit(Finetuning(steps=20, num_classes=10, pretrained=True), data)
