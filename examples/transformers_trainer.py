"""A Dr²Net in transformers' Trainer: python examples/transformers_trainer.py FOLDER [MODEL].

FOLDER has a folder of images for each class, MODEL is a name on the Hub or a folder.
"""

import sys

import torch
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Normalize, Resize, ToTensor
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments

import dr2net


def main(folder, name="google/vit-base-patch16-224-in21k", out="finetuned", **arguments):
    images = ImageFolder(folder)
    model = AutoModelForImageClassification.from_pretrained(name, num_labels=len(images.classes))
    model = dr2net.convert(model)
    size = (model.config.image_size, model.config.image_size)
    images.transform = Compose([Resize(size), ToTensor(), Normalize((0.5,) * 3, (0.5,) * 3)])

    def collate(samples):
        pixels, labels = zip(*samples, strict=True)
        return {"pixel_values": torch.stack(pixels), "labels": torch.tensor(labels)}

    settings = {"save_strategy": "no", "report_to": "none", "learning_rate": 5e-5, **arguments}
    trainer = Trainer(
        model=model,
        args=TrainingArguments(out, remove_unused_columns=False, **settings),
        train_dataset=images,
        data_collator=collate,
    )
    trainer.train()
    example = collate([images[0]])["pixel_values"].to(model.device)
    dr2net.revert(model.eval(), example).save_pretrained(out)  # as transformers knows it
    return trainer


if __name__ == "__main__":
    main(*sys.argv[1:])
