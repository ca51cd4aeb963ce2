"""Putting rewritten parts into a network, which itself stays as it is."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

Maker = Callable[[Any], nn.Module]
Part = TypeVar("Part", bound=nn.Module)


def substituted(module: Part, makers: Mapping[type[nn.Module], Maker]) -> Part:
    """Return `module` with each part inside it of a type in `makers` replaced by what its maker makes of it.

    Modules are copied, their parameters are not: the original shares them and is left untouched.
    """
    clone = copy.copy(module)
    children: dict[str, nn.Module | None] = {}
    for name, child in module._modules.items():
        if child is None:
            children[name] = None
        elif type(child) in makers:
            children[name] = makers[type(child)](child)
        else:
            children[name] = substituted(child, makers)
    clone._modules = children
    clone._parameters, clone._buffers = dict(module._parameters), dict(module._buffers)
    return clone
