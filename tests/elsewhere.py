"""A second device without a second device: tensors that say they are elsewhere, and refuse to be mixed.

They call themselves ``meta``, have their numbers on the CPU all the same, and any operation on one of them
and a tensor of the CPU that is no scalar fails, as it does between a GPU and the CPU.
"""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

ELSEWHERE = torch.device("meta")
_BETWEEN = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
_INDEXED = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default)  # by indices on the CPU, as a GPU


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
    """Tensors that are made on the device ``meta`` have numbers while this is on."""

    def __enter__(self):
        self._made = _Made()
        self._made.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._made.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


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
