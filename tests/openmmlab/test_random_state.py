import pickle
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("mmengine")

from dr2net.openmmlab.random_state import (
    ResumableRandomnessHook,
    SeededIndex,
    SeededInfiniteSampler,
    SeededSampler,
    sample_random_state,
)


def draw():
    return random.random(), np.random.random(), torch.rand(()).item()  # noqa: NPY002


def seed_all():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)


def draw_sample(index):
    with sample_random_state(index):
        return draw()


def test_seeded_index_is_its_integer_and_keeps_its_seed_across_processes():
    index = pickle.loads(pickle.dumps(SeededIndex(3, (0, 1, 3))))
    assert (index, [10, 11, 12, 13][index], index.seed) == (3, 13, (0, 1, 3))


def test_sample_draws_the_same_whatever_was_drawn_before():
    first = draw_sample(SeededIndex(3, (0, 1, 3)))
    draw()
    assert draw_sample(SeededIndex(3, (0, 1, 3))) == first


@pytest.mark.parametrize("seed", [(1, 1, 3), (0, 2, 3), (0, 1, 4)])
def test_sample_draws_differ_with_seed_epoch_and_index(seed):
    assert draw_sample(SeededIndex(3, seed)) != draw_sample(SeededIndex(3, (0, 1, 3)))


def test_surrounding_random_state_is_put_back():
    seed_all()
    expected = draw()
    seed_all()
    draw_sample(SeededIndex(3, (0, 1, 3)))
    assert draw() == expected


def test_plain_index_draws_from_the_surrounding_random_state():
    torch.manual_seed(0)
    first = draw_sample(3)
    assert draw_sample(3)[2] != first[2]


def test_sampler_sends_seed_epoch_and_index():
    sampler = SeededSampler(range(4), shuffle=True, seed=7)
    sampler.set_epoch(2)
    assert sorted((int(i), i.seed) for i in sampler) == [(i, (7, 2, i)) for i in range(4)]


def test_infinite_sampler_counts_passes():
    stream = iter(SeededInfiniteSampler(range(3), shuffle=True, seed=7))
    passes = [[next(stream) for _ in range(3)] for _ in range(2)]
    for number, indices in enumerate(passes):
        assert sorted((int(i), i.seed) for i in indices) == [(i, (7, number, i)) for i in range(3)]


def test_infinite_sampler_resumes_where_it_stopped():
    unbroken = iter(SeededInfiniteSampler(range(3), seed=7))
    expected = [next(unbroken) for _ in range(8)][5:]
    resumed = SeededInfiniteSampler(range(3), seed=7)
    resumed.skip(5)
    continued = iter(resumed)
    assert [(int(i), i.seed) for i in expected] == [
        (int(i), i.seed) for i in (next(continued) for _ in range(3))
    ]


class TestHook:
    def seeded_draw(self, **changes):
        runner = SimpleNamespace(**{"seed": 0, "rank": 0, "iter": 5} | changes)
        ResumableRandomnessHook().before_train_iter(runner, 0)
        return draw()

    def test_iteration_draws_the_same_in_every_run(self):
        first = self.seeded_draw()
        draw()
        assert self.seeded_draw() == first

    @pytest.mark.parametrize("changes", [{"seed": 1}, {"rank": 1}, {"iter": 6}])
    def test_draws_differ_with_seed_rank_and_iteration(self, changes):
        assert self.seeded_draw(**changes) != self.seeded_draw()
