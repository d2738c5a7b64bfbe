import pytest
import torch
from torch import nn

from dr2net.block_state import BlockState


def block():
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))


def held(module):
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def test_tensors_taken_out_since_are_put_back_and_the_others_afterwards():
    module = block()
    before, state = held(module), BlockState(module)
    state.keep_what_matters([])
    module[0].weight = nn.Parameter(torch.zeros(2, 2))
    module[1].running_mean = torch.ones(2)
    del module[0]._parameters["bias"]
    after = held(module)
    with state.put_back("here"):
        assert all(tensor is before[name] for name, tensor in held(module).items())
    assert held(module).keys() == after.keys()
    assert all(tensor is after[name] for name, tensor in held(module).items())


def test_buffers_changed_by_forward_are_copies_of_what_they_were():
    module = block()
    counter = module[1].num_batches_tracked
    state = BlockState(module)
    counter.add_(1)
    state.keep_what_matters([])
    for _ in range(2):
        with state.put_back("here") as others:
            assert module[1].num_batches_tracked == 0
            module[1].num_batches_tracked.add_(5)
            assert {id(b) for b in others} == {id(b) for b in module.buffers() if b.ndim}
    assert module[1].num_batches_tracked is counter
    assert counter == 1


def test_what_is_put_back_leaves_when_the_recomputation_fails():
    module = block()
    state, new = BlockState(module), nn.Parameter(torch.zeros(2, 2))
    module[0].weight = new
    with pytest.raises(ZeroDivisionError), state.put_back("here"):
        raise ZeroDivisionError
    assert module[0].weight is new


def test_a_parameter_changed_in_place_is_refused():
    module = block()
    state = BlockState(module)
    with torch.no_grad():
        module[0].weight.add_(1)
    with (
        pytest.raises(RuntimeError, match=r"parameters of here were changed.*optimizer's step"),
        state.put_back("here"),
    ):
        pass


def test_a_parameter_taken_out_and_freed_is_refused():
    # As a sharded one is that nobody has gathered for backward.
    module = block()
    state, old = BlockState(module), module[0].weight
    module[0].weight = nn.Parameter(torch.zeros(1))
    old.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="parameters of here"), state.put_back("here"):
        pass
