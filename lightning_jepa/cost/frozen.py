"""Readouts that are trained once and then belong to the immutable part of the cost."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


class Frozen(nn.Module):
    """A trained module as it is now: its weights become buffers, which no optimizer finds and a hash covers.

    Args:
        module: what to freeze; it is copied, so that training it on changes nothing here.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.kind = type(module).__name__
        weights = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        self._names = {name: name.replace(".", "/") for name in weights}
        for name, held in self._names.items():
            self.register_buffer(held, weights[name].detach().clone())
        # Only its structure is needed; in a tuple, so that its parameters are not taken for this module's.
        self._structure = (copy.deepcopy(module).eval().to("meta"),)

    def forward(self, *inputs: Tensor) -> Any:
        """As the module that was frozen, in evaluation mode."""
        weights = {name: self.get_buffer(held) for name, held in self._names.items()}
        return functional_call(self._structure[0], weights, inputs)
