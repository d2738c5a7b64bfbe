"""Random numbers that do not depend on where a run was interrupted.

mmengine saves no random state, seeds each dataloader worker with a constant, and starts workers
anew on resume: a resumed run draws other masks and augmentations than an unbroken one. Here every
draw is a function of what is being computed instead of what ran before it:

- the main process (dropout, stochastic depth, mixup) is seeded before each iteration from
  (seed, rank, iteration) by ``ResumableRandomnessHook``;
- the augmentation of a sample is seeded from (seed, pass over the data, index of the sample), which
  ``SeededSampler`` and ``SeededInfiniteSampler`` send along with the index, and which the dataset
  puts to use by ``sample_random_state``. It depends neither on the number of workers or ranks nor
  on whether workers persist.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS, HOOKS
from mmengine.runner import Runner


class SeededIndex(int):
    """The index of a sample together with the seed of its augmentation.

    An ``int`` in every other respect, so that datasets and wrappers that do not know of it work.
    """

    seed: tuple[int, ...]

    def __new__(cls, index: int, seed: tuple[int, ...]) -> "SeededIndex":
        self = super().__new__(cls, index)
        self.seed = seed
        return self

    def __reduce__(self) -> tuple:
        return SeededIndex, (int(self), self.seed)


@contextmanager
def sample_random_state(index: int) -> Iterator[None]:
    """Draw Python's, numpy's and torch's CPU random numbers from the seed of a sample.

    The states from before are put back at the end. A plain ``int`` carries no seed: nothing is
    done and the surrounding random state is drawn from, as in mmengine.
    """
    if not isinstance(index, SeededIndex):
        yield
        return
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        _seed_cpu(index.seed)
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


def _seed_cpu(entropy: tuple[int, ...]) -> int:
    """Seed Python, numpy and torch's CPU generator; return the 64-bit seed torch was given."""
    # SeedSequence mixes its words, so that neighbouring seeds, ranks or steps share nothing.
    seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the transforms of OpenMMLab draw from it
    torch.default_generator.manual_seed(seed)
    return seed


@DATA_SAMPLERS.register_module()
class SeededSampler(DefaultSampler):
    """mmengine's ``DefaultSampler`` whose indices carry the seed (seed, epoch, index)."""

    def __iter__(self) -> Iterator[SeededIndex]:
        for index in super().__iter__():
            yield SeededIndex(index, (self.seed, self.epoch, index))


@DATA_SAMPLERS.register_module()
class SeededInfiniteSampler(InfiniteSampler):
    """mmengine's ``InfiniteSampler`` whose indices carry the seed (seed, pass, index)."""

    def _infinite_indices(self) -> Iterator[SeededIndex]:
        for position, index in enumerate(super()._infinite_indices()):
            yield SeededIndex(index, (self.seed, position // self.size, index))


@HOOKS.register_module()
class ResumableRandomnessHook(Hook):
    """Seed the random state of each process before each training iteration.

    With ``SeededSampler``, a resumed run then continues with exactly the losses that the unbroken
    run would have had. The seed is the runner's, which a checkpoint carries along.
    """

    # Hooks that draw random numbers before an iteration should find the state already set.
    priority = "VERY_HIGH"

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | tuple | list | None = None
    ) -> None:
        seed = _seed_cpu((runner.seed, runner.rank, runner.iter))
        torch.manual_seed(seed)
