"""timm's own training tools around a Dr²Net: python examples/timm_training.py FOLDER [MODEL].

FOLDER has a folder of images for each class.
"""

import sys

import timm
import torch
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, ModelEmaV3

import dr2net


def main(folder, name="vit_small_patch16_224", pretrained=True, epochs=5, batch=32, workers=4):
    dataset = create_dataset("", root=folder)
    classes = len(dataset.reader.class_to_idx)
    model = dr2net.convert(timm.create_model(name, pretrained=pretrained, num_classes=classes))
    model.to(device := torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    kept = {key: resolve_data_config(model=model)[key] for key in ("input_size", "mean", "std")}
    settings = {"use_prefetcher": False, "is_training": True, "num_workers": workers}
    loader = create_loader(dataset, batch_size=batch, device=device, **kept, **settings)
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-4, weight_decay=0.05, layer_decay=0.75)
    scheduler, epochs = create_scheduler_v2(optimizer, num_epochs=epochs, warmup_epochs=1)
    loss_of, average = LabelSmoothingCrossEntropy(0.1), ModelEmaV3(model, decay=0.99)
    for epoch in range(epochs):
        losses = AverageMeter()
        for images, labels in ((x.to(device), y.to(device)) for x, y in loader):
            loss = loss_of(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            average.update(model)
            losses.update(loss.item(), len(images))
        scheduler.step(epoch + 1)
        print(f"epoch {epoch + 1}: loss {losses.avg:.3f}")
    return dr2net.revert(average.module.eval(), images)  # a plain network of timm again


if __name__ == "__main__":
    torch.save(main(*sys.argv[1:]).state_dict(), "finetuned.pth")
