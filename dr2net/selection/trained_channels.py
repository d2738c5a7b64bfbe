"""A layer of whose weight some input channels are trained: what it keeps, and their gradient.

The layer computes as ever, with its whole weight, which is frozen. What is trained is a parameter
of its own, the slice ``weight[:, channels]``, so that gradient, optimizer state and buckets of DDP
have its size; it is written into the weight after each step of an optimizer. ``layer.weight`` is
therefore what the network computes with, and a state_dict has it under the library's own name.

Of a frozen linear layer autograd keeps no input; a hook behind it keeps the chosen channels and
hands the slice its gradient. Of a frozen convolution it does keep the input, so that one takes the
place of the layer's own, which does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..replay import compute_dtype

__all__ = ["SLICE", "TrainedChannels", "trained_channels"]

SLICE = "weight_of_trained_channels"
"""Name of the trained parameter in its layer; its shape is (out, channels, *kernel)."""

# By the id of the trained slice.
_owners: WeakValueDictionary[int, TrainedChannels] = WeakValueDictionary()
# The ids of the parameters that a DistributedDataParallel reduces.
_reduced: WeakKeyDictionary[nn.Module, set[int]] = WeakKeyDictionary()


class TrainedChannels:
    """Hooks of a linear or convolution layer that train some input channels of its weight.

    Args:
        layer: ``nn.Linear`` or ``nn.Conv1d`` to ``nn.Conv3d``, in one group.
        name: its path in the network, for messages.
        channels: indices of the input channels to train, ascending, int64. There may be none: the
            slice is then an empty parameter, in graph and optimizer like any other.
    """

    def __init__(self, layer: Any, name: str, channels: Tensor):
        self.layer, self.name = layer, name
        self.layer.weight.requires_grad_(False)
        self.layer.trained_channels = self
        self._handles = [
            layer.register_forward_pre_hook(self._before),
            layer.register_state_dict_pre_hook(self._before_state),
            layer.register_state_dict_post_hook(_leave_out),
            layer.register_load_state_dict_post_hook(self._after_loading),
        ]
        if isinstance(layer, nn.Linear):
            self._handles.append(layer.register_forward_hook(self._after, with_kwargs=True))
        else:
            layer._conv_forward = self._convolve
        self._version = -1  # of the slice that the weight has
        self._take(channels)

    def choose(self, channels: Tensor) -> None:
        """Trains other channels from now on: a new parameter, unless they are the same."""
        if not torch.equal(channels, self.channels.cpu()):
            self.update_weight()
            _owners.pop(id(self.parameter), None)
            self._take(channels)

    def update_weight(self) -> None:
        """Writes the slice into the weight, if it may have changed."""
        self._write(self.layer.weight)

    def _write(self, weight: Tensor) -> None:
        if self._version != self.parameter._version:
            with torch.no_grad():
                weight.index_copy_(1, self._channels_on(weight.device), self.parameter)
            self._version = self.parameter._version

    def remove(self) -> None:
        """Leaves the layer as it was, with the weight as it is trained by now."""
        self.update_weight()
        for handle in self._handles:
            handle.remove()
        self.layer.__dict__.pop("_conv_forward", None)
        del self.layer._parameters[SLICE], self.layer.trained_channels

    def __setstate__(self, state: dict[str, Any]) -> None:  # of a copy
        self.__dict__.update(state)
        _owners[id(self.parameter)] = self

    def _take(self, channels: Tensor) -> None:
        weight = self.layer.weight.detach()
        self.channels = channels.to(weight.device)
        self.parameter = nn.Parameter(weight.index_select(1, self.channels))
        self._version = self.parameter._version
        self.layer.register_parameter(SLICE, self.parameter)
        _owners[id(self.parameter)] = self

    def _channels_on(self, device: torch.device) -> Tensor:
        if self.channels.device != device:
            self.channels = self.channels.to(device)
        return self.channels

    @torch.compiler.disable
    def _before(self, *_: Any) -> None:
        # By .data, which raises no version: a coupling before this one, of the same block, has
        # noted those of the block's weights. That of the slice tells who keeps what it was.
        self._write(self.layer.weight.data)

    @torch.compiler.disable
    def _after(self, layer: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor | None:
        parameter = self._slice_in_use()
        if parameter is None:
            return None
        x = args[0] if args else kwargs["input"]
        # In the precision in which the layer has computed, under autocast too.
        kept = x.detach().index_select(-1, self._channels_on(x.device)).to(output.dtype)
        return _GradientOfSlice.apply(output, parameter, kept)

    @torch.compiler.disable
    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What the layer's ``_conv_forward`` computes."""
        layer, parameter = self.layer, self._slice_in_use()
        if parameter is None:
            return type(layer)._conv_forward(layer, x, weight, bias)
        spatial = len(layer.kernel_size)
        is_batch = x.ndim == spatial + 2
        dtype = x.dtype if x.dtype == torch.float64 else compute_dtype(x.device, x.dtype)
        x = x if is_batch else x[None]
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        pads, padding = layer._reversed_padding_repeated_twice, layer.padding
        if mode != "constant" or (padding == "same" and pads[::2] != pads[1::2]):
            x, padding = F.pad(x, pads, mode=mode), "valid"
        if isinstance(padding, str):
            padding = [0] * spatial if padding == "valid" else pads[::2][::-1]
        x, bias = x.to(dtype), None if bias is None else bias.to(dtype)
        kept = x.detach().index_select(1, self._channels_on(x.device))
        geometry = (layer.stride, padding, layer.dilation)
        output = _Convolution.apply(x, weight, bias, parameter, kept, geometry)
        return output if is_batch else output[0]

    def _slice_in_use(self) -> Any:
        """What stands for the trained slice; None without gradients, or where it was frozen."""
        if not torch.is_grad_enabled():
            return None
        parameter: Any = self.layer._parameters[SLICE]
        if parameter is not self.parameter and parameter._base is not self.parameter:
            raise RuntimeError(
                f"The trained channels of {self.name} were exchanged for another tensor, by "
                "fully_shard (FSDP2), torch.func.functional_call or nn.DataParallel, which cannot "
                "train a part of a weight: train with DistributedDataParallel or in one process, "
                "or call selection.remove() first."
            )
        _refuse_stale_ddp(self)
        return parameter if parameter.requires_grad else None

    def _before_state(self, *_: Any) -> None:
        self.update_weight()

    def _after_loading(self, layer: Any, keys: Any) -> None:
        missing = keys.missing_keys
        missing[:] = [key for key in missing if key.rpartition(".")[2] != SLICE]
        weight = layer.weight.requires_grad_(False)  # which assign=True has exchanged
        with torch.no_grad():
            self.parameter.copy_(weight.index_select(1, self._channels_on(weight.device)))
        self._version = self.parameter._version


def _leave_out(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
    """Hook on a state_dict, whose weight has the slice."""
    state.pop(prefix + SLICE, None)


def trained_channels(model: nn.Module) -> Iterator[TrainedChannels]:
    """Those of the layers of ``model`` of which channels were chosen."""
    for module in model.modules():
        found = module.__dict__.get("trained_channels")
        if isinstance(found, TrainedChannels):
            yield found


class _GradientOfSlice(torch.autograd.Function):
    """The output of a linear layer as it is; backward computes the slice's gradient beside it."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, parameter: Tensor, kept: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.mark_dirty(output)  # returned itself, so that operations in place may follow
        ctx.save_for_backward(kept, parameter)  # whose version is checked
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None) -> tuple:
        if grad is None:
            return None, None, None
        kept, parameter = ctx.saved_tensors
        of_slice = None
        if ctx.needs_input_grad[1]:
            rows = grad.reshape(-1, grad.shape[-1])
            with _without_autocast(grad):
                of_slice = rows.t().mm(kept.reshape(len(rows), kept.shape[-1])).to(parameter.dtype)
        return grad, of_slice, None


CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


class _Convolution(torch.autograd.Function):
    """A convolution with a frozen weight, which keeps no more of x than the chosen channels."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        parameter: Tensor,
        kept: Tensor,
        geometry: tuple,
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weight, parameter, kept)
        ctx.shape, ctx.geometry = x.shape, geometry
        return CONVOLUTIONS[x.ndim](x, weight.to(x.dtype), bias, *geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None) -> tuple:
        if grad is None:
            return (None,) * 6
        weight, parameter, kept = ctx.saved_tensors
        of_x = of_bias = of_slice = None
        further = (None, *ctx.geometry, False, (0,) * (grad.ndim - 2), 1)
        backward = torch.ops.aten.convolution_backward
        with _without_autocast(grad):
            if ctx.needs_input_grad[0]:
                x = grad.new_empty(ctx.shape)  # of which the shape alone matters
                masks = (True, False, False)
                of_x = backward(grad, x, weight.to(grad.dtype), *further, masks)[0]
            if ctx.needs_input_grad[2]:
                of_bias = grad.sum((0, *range(2, grad.ndim)))
            if ctx.needs_input_grad[3] and not kept.numel():
                of_slice = torch.zeros_like(parameter)
            elif ctx.needs_input_grad[3]:
                shape_alone, masks = kept.new_empty(parameter.shape), (False, True, False)
                of_slice = backward(grad, kept, shape_alone, *further, masks)[1]
                of_slice = of_slice.to(parameter.dtype)
        return of_x, None, of_bias, of_slice, None, None


def _without_autocast(tensor: Tensor) -> AbstractContextManager:
    """What runs in backward has its precision already."""
    kind = tensor.device.type
    is_on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if is_on else nullcontext()


def _refuse_stale_ddp(trained: TrainedChannels) -> None:
    """Raises RuntimeError if a DistributedDataParallel around does not know this slice."""
    ddp: Any = DistributedDataParallel._get_active_ddp_module()
    if ddp is None:
        return
    if ddp not in _reduced:
        _reduced[ddp] = set(map(id, ddp._module_parameters))
    if id(trained.parameter) not in _reduced[ddp]:
        raise RuntimeError(
            f"The channels of {trained.name} were drawn after DistributedDataParallel was put "
            "around the network, so that processes would not share their gradients: wrap the "
            "network anew after each draw, model = DistributedDataParallel(network)."
        )


def _after_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Hook on the steps of all optimizers: writes the slices that this one trains.

    Not every optimizer raises a tensor's version (fused ones do not). Within a backward, where
    optimizers may run parameter by parameter, the layer's own backward still needs the weight.
    """
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        owner = _owners.get(id(parameter))
        if owner is not None and owner.parameter is parameter:
            owner._version = -1
            if torch._C._current_graph_task_id() < 0:
                owner.update_weight()


register_optimizer_step_post_hook(_after_step)
