"""Small sets of real images that packages ship, as tensors.

Fashion-MNIST (Xiao et al. 2017, MIT licence): ``apt-get install dataset-fashion-mnist``.
Noto's emoji (Google, SIL Open Font License 1.1) and Unicode's groups of them (Unicode License):
``apt-get install fonts-noto-color-emoji unicode-data``.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # where Debian puts it
NOTO_EMOJI = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
EMOJI_GROUPS = Path("/usr/share/unicode/emoji/emoji-test.txt")
EMOJI = (
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
)
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


@dataclass(frozen=True)
class Part:
    """Images, (number, 1 or 3, height, width) uint8, and their classes, (number,) int64."""

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
        seed: Of the draw.
        train, validation: Images of its 60,000 training images.
        test: Images of its 10,000 test images.

    Raises:
        FileNotFoundError: Fashion-MNIST is not installed.
    """
    training = Part(_idx("train-images-idx3-ubyte"), _idx("train-labels-idx1-ubyte"))
    held_out = Part(_idx("t10k-images-idx3-ubyte"), _idx("t10k-labels-idx1-ubyte"))
    first, second = _drawn(training, seed, train, validation)
    return ImageSet(first, second, *_drawn(held_out, seed, test))


def _idx(name: str) -> Tensor:
    path = FASHION_MNIST / f"{name}.gz"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: apt-get install dataset-fashion-mnist")
    content = gzip.decompress(path.read_bytes())
    if "labels" in name:
        return torch.from_numpy(np.frombuffer(content, np.uint8, offset=8).astype(np.int64))
    return torch.from_numpy(
        np.frombuffer(content, np.uint8, offset=16).reshape(-1, 1, 28, 28).copy()
    )


def emoji(seed: int, train: int, validation: int, test: int) -> ImageSet:
    """Draw a small set out of Noto's pictures of emoji: 6 groups of Unicode, 128 × 128 px, colours.

    What is learnt is to tell animals from food, things, places and so on, which one example says
    little about: no emoji is in two parts. Those of people and faces, which look alike, and flags
    are left out, and so are sequences of characters.

    Args:
        seed: Of the draw.
        train, validation, test: Emoji of each part.

    Raises:
        FileNotFoundError: The font or the table of Unicode is not installed.
    """
    from fontTools.ttLib import TTFont

    for path in (NOTO_EMOJI, EMOJI_GROUPS):
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: apt-get install fonts-noto-color-emoji unicode-data"
            )
    font = TTFont(NOTO_EMOJI)
    names, pictures = font.getBestCmap(), font["CBDT"].strikeData[0]
    images, labels = [], []
    for code, group in _groups_of_emoji():
        if names.get(code) in pictures:
            images.append(_on_white(pictures[names[code]].imageData))
            labels.append(EMOJI.index(group))
    every = Part(torch.stack(images), torch.tensor(labels))
    return ImageSet(*_drawn(every, seed, train, validation, test))


def _groups_of_emoji() -> Iterator[tuple[int, str]]:
    """Character and group of each emoji of one character that is of ``EMOJI``'s groups."""
    group = ""
    for line in EMOJI_GROUPS.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ").strip()
        codes, _, rest = line.partition(";")
        if group in EMOJI and rest.strip().startswith("fully-qualified"):
            characters = [code for code in codes.split() if code != "FE0F"]
            if len(characters) == 1:
                yield int(characters[0], 16), group


def _on_white(png: bytes) -> Tensor:
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    page = Image.new("RGBA", picture.size, "white")
    page.alpha_composite(picture)
    return torch.from_numpy(np.array(page.convert("RGB").resize((128, 128)))).permute(2, 0, 1)


def _drawn(part: Part, seed: int, *numbers: int) -> list[Part]:
    if sum(numbers) > len(part):
        raise ValueError(f"{sum(numbers)} images are asked for, of {len(part)}")
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))
    chosen = order[: sum(numbers)].split(numbers)
    return [Part(part.images[indices], part.labels[indices]) for indices in chosen]


def as_input(images: Tensor, size: int) -> Tensor:
    """Return images as networks of ImageNet take them: (number, 3, size, size) float32, there."""
    resized = F.interpolate(
        images.float() / 255, size=(size, size), mode="bicubic", antialias=True
    ).clamp(0, 1)
    mean, std = MEAN.to(images.device), STD.to(images.device)
    return (resized.expand(-1, 3, -1, -1) - mean) / std
