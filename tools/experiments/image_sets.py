"""Small sets of real images that packages ship, as tensors.

Fashion-MNIST (Xiao et al. 2017, MIT licence): ``apt-get install dataset-fashion-mnist``.
Digits (Alpaydin and Kaynak 1998, UCI, CC BY 4.0): in scikit-learn.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # where Debian puts it
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


@dataclass(frozen=True)
class Part:
    """Images, (number, height, width) uint8, and their classes, (number,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ImageSet:
    """What is trained on, what chooses the learning rate, and what is reported."""

    train: Part
    validation: Part
    test: Part


def fashion_mnist(seed: int, train: int, validation: int, test: int) -> ImageSet:
    """Draw a small set out of Fashion-MNIST: 10 classes of clothing, 28 × 28 px, grey.

    Args:
        seed: Of the draw from the 60,000 training images. The test set is the first ``test`` of
            the 10,000 test images, whatever the seed.
        train: Images to train on.
        validation: Images of the training set that are not trained on.
        test: Images of the test set.

    Raises:
        FileNotFoundError: Fashion-MNIST is not installed.
    """
    images, labels = _idx("train-images-idx3-ubyte"), _idx("train-labels-idx1-ubyte")
    rest = _idx("t10k-images-idx3-ubyte"), _idx("t10k-labels-idx1-ubyte")
    return _drawn(images, labels, seed, train, validation, Part(rest[0][:test], rest[1][:test]))


def _idx(name: str) -> Tensor:
    path = FASHION_MNIST / f"{name}.gz"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: apt-get install dataset-fashion-mnist")
    content = gzip.decompress(path.read_bytes())
    if "labels" in name:
        return torch.from_numpy(np.frombuffer(content, np.uint8, offset=8).astype(np.int64))
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28).copy())


def digits(seed: int, train: int, validation: int, test: int) -> ImageSet:
    """Draw a small set out of scikit-learn's digits: 10 classes, 8 × 8 px, grey.

    Args:
        seed: Of the draw from the 1,797 images without the last ``test``, which are the test set
            (other people's handwriting than the first ones').
        train: Images to train on.
        validation: Images that are not trained on.
        test: Images of the test set.
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy(found.images * (255 / 16)).round().to(torch.uint8)
    labels = torch.from_numpy(found.target).long()
    held_out = Part(images[-test:], labels[-test:])
    return _drawn(images[:-test], labels[:-test], seed, train, validation, held_out)


def _drawn(
    images: Tensor, labels: Tensor, seed: int, train: int, validation: int, test: Part
) -> ImageSet:
    if train + validation > len(labels):
        raise ValueError(f"{train} + {validation} images are asked for, of {len(labels)}")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    first, second = order[:train], order[train : train + validation]
    return ImageSet(Part(images[first], labels[first]), Part(images[second], labels[second]), test)


def as_input(images: Tensor, size: int) -> Tensor:
    """Return images as networks of ImageNet take them: (number, 3, size, size) float32."""
    grey = images[:, None].float() / 255
    grey = F.interpolate(grey, size=(size, size), mode="bicubic").clamp(0, 1)
    return (grey.expand(-1, 3, -1, -1) - MEAN) / STD
