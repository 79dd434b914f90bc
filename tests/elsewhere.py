"""A second device without a second device: tensors that say they are elsewhere, and refuse to be mixed.

They call themselves ``meta``, have their numbers on the CPU all the same, and any operation on one of them
and a tensor of the CPU that is no scalar fails, as it does between a GPU and the CPU. Whatever would make the
host wait for a GPU is noted, with the function in which it stands.
"""

import sys
from collections import Counter

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

ELSEWHERE = torch.device("meta")
_BETWEEN = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
_INDEXED = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default)  # by indices on the CPU, as a GPU
_SIZED_BY_DATA = (
    torch.ops.aten._local_scalar_dense.default,  # .item(), float(), bool(), int(), if
    torch.ops.aten.equal.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten._unique2.default,
    torch.ops.aten.bincount.default,
    torch.ops.aten.repeat_interleave.Tensor,
)


class Away(torch.Tensor):
    """A tensor elsewhere."""

    @staticmethod
    def __new__(cls, real):
        away = torch.Tensor._make_wrapper_subclass(
            cls,
            real.shape,
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            device=ELSEWHERE,
        )
        away.real_ = real
        return away

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class Elsewhere(TorchDispatchMode):
    """Tensors that are made on the device ``meta`` have numbers while this is on.

    Attributes:
        waits: how often the host would have waited for the device, by module and function.
        operations: names of the operations done there.
    """

    def __init__(self):
        super().__init__()
        self.waits, self.operations = Counter(), set()

    def __enter__(self):
        _on.append(self)
        self._made = _Made()
        self._made.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._made.__exit__(*error)
        _on.pop()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


_on = []
"""The modes that are on; the last one takes notes."""


def _note(func, tensors, kwargs):
    """Whether a GPU would be waited for, and where."""
    there = [isinstance(x, Away) for x in tensors]
    waits = any(there) and func in _SIZED_BY_DATA
    if func is torch.ops.aten._to_copy.default and kwargs.get("device") is not None:
        to = torch.device(kwargs["device"]) == ELSEWHERE
        waits |= to != there[0] and not (to and kwargs.get("non_blocking"))
    elif func is torch.ops.aten.copy_.default:
        waits |= there[0] != there[1]
    elif func in _INDEXED and there[0]:
        waits |= any(not t or x.dtype == torch.bool for t, x in zip(there[1:], tensors[1:], strict=True))
    if waits and _on:
        _on[-1].waits[_place()] += 1
    if any(there) and _on:
        _on[-1].operations.add(str(func))


def _place():
    """The innermost function that is ours or Boltz's."""
    frame = sys._getframe(1)
    while frame is not None:
        package, _, module = frame.f_globals["__name__"].partition(".")
        if package in ("densemble", "boltz"):
            return f"{module.rpartition('.')[2]}.{frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"


class _Made(TorchFunctionMode):
    """Tensors made of numbers, which no dispatch sees."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        asked = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and asked is not None and torch.device(asked) == ELSEWHERE:
            return func(*args, **kwargs | {"device": "cpu"}).to(ELSEWHERE)
        if func is torch.Tensor.new_tensor and not kwargs and args[0].device == ELSEWHERE:
            return torch.tensor(args[1], dtype=args[0].dtype).to(ELSEWHERE)
        return func(*args, **kwargs)


def _run(func, args, kwargs):
    flat = tree_flatten((args, kwargs))[0]
    tensors = [x for x in flat if isinstance(x, torch.Tensor)]
    away = any(isinstance(x, Away) for x in tensors)
    here = [x for x in tensors if not isinstance(x, Away) and x.ndim > 0]
    if away and here and func not in _BETWEEN and func not in _INDEXED:
        raise RuntimeError(f"{func}: tensors on two devices, {[tuple(x.shape) for x in here]} on the CPU")
    _note(func, tensors, kwargs)
    asked = kwargs.get("device")
    goes = away if asked is None else torch.device(asked) == ELSEWHERE
    if asked is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    given = {id(x.real_): x for x in tensors if isinstance(x, Away)}
    unwrapped = lambda x: x.real_ if isinstance(x, Away) else x  # noqa: E731
    out = func(*tree_map(unwrapped, args), **tree_map(unwrapped, kwargs))
    if func is torch.ops.aten.copy_.default:
        return args[0]

    def wrapped(x):
        return given.get(id(x)) or Away(x) if isinstance(x, torch.Tensor) and goes else x

    return tree_map(lambda x: given[id(x)] if id(x) in given else wrapped(x), out)


def send(module):
    """All weights and buffers of a module to elsewhere."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = torch.nn.Parameter(Away(value.detach()), requires_grad=False)
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = Away(value)
