"""The intrinsic cost: what the agent is for, immutable (paper section 3.2, "the intrinsic cost module").

Legend: B episodes, S candidates, H horizon, D state, P body, A action, K terms.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_jepa.cost.frozen import Frozen
from lightning_jepa.cost.goal import GoalEnergy
from lightning_jepa.types import Modulation


class IntrinsicCost(nn.Module):
    """IC(s, a) = (IC_1, ..., IC_K): differentiable, with nothing that could be trained.

    A term is a module from states [B, S, H, D], the actions [B, S, H, A] that led there and a modulation to energies
    [B, S, H]. Weights u come from outside, with each `Modulation`.

    Args:
        terms: name -> term; or what makes one of a `metric`, for terms that are measured in the space of a trained
            readout.
        metric: that readout, from states [..., D] to [..., M]; it is copied and frozen.

    Raises:
        ValueError: if there are no terms, a metric is missing, or something in a term could be trained.
    """

    def __init__(
        self, terms: Mapping[str, nn.Module | Callable[..., nn.Module]], metric: nn.Module | None = None
    ) -> None:
        super().__init__()
        if not terms:
            raise ValueError("the intrinsic cost has no terms; give at least one in cost.terms")
        frozen = None if metric is None else Frozen(metric)
        built: dict[str, nn.Module] = {}
        for name, term in terms.items():
            if not isinstance(term, nn.Module):
                if frozen is None:
                    raise ValueError(f"cost.terms.{name} is measured in the space of a metric: give one")
                term = term(metric=frozen)
            built[name] = term
        self.terms = nn.ModuleDict(built)
        trainable = [name for name, _ in self.named_parameters()]
        if trainable:
            raise ValueError(
                f"the intrinsic cost is immutable, but {trainable} could be trained; wrap readouts in Frozen"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Of the K terms, in the order of u."""
        return tuple(self.terms)

    @property
    def goal(self) -> int:
        """Which term is the goal's energy.

        Raises:
            ValueError: if none or several are.
        """
        found = [place for place, term in enumerate(self.terms.values()) if isinstance(term, GoalEnergy)]
        if len(found) != 1:
            raise ValueError(f"the terms {list(self.names)} hold {len(found)} goal energies: this needs exactly one")
        return found[0]

    def forward(self, states: Tensor, actions: Tensor, modulation: Modulation) -> Tensor:
        """[B, S, H, D], [B, S, H, A] -> [B, S, H, K]."""
        return torch.stack([term(states, actions, modulation) for term in self.terms.values()], -1)

    def felt(self, body: Tensor, actions: Tensor) -> Tensor:
        """Energies of terms that look at nothing but the body and actions: [B, T, P], [B, T, A] -> [B, T, K]."""
        nothing = Modulation(goal=body.new_zeros(len(body), 0))
        energies: Tensor = self(body[:, None], actions[:, None], nothing)[:, 0]
        return energies

    @property
    def fingerprint(self) -> str:
        """sha256 over the terms' classes, settings and buffers: what `callbacks.immutable` compares."""
        digest = hashlib.sha256()
        for name, module in self.named_modules():
            plain = {key: value for key, value in vars(module).items() if not key.startswith("_") and key != "training"}
            settings = {k: v for k, v in sorted(plain.items()) if isinstance(v, (bool, int, float, str, tuple))}
            digest.update(f"{name}: {type(module).__qualname__} {settings}\n".encode())
        for name, buffer in sorted(self.named_buffers()):
            digest.update(f"{name} {tuple(buffer.shape)}\n".encode())
            digest.update(buffer.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def channel(names: Sequence[str], wanted: str, term: str) -> int:
    """Where a channel of the body is in a state, counted from its end.

    Raises:
        ValueError: if the body has no such channel.
    """
    if wanted not in names:
        raise ValueError(
            f"{term} needs the body channel {wanted!r}, this world has {list(names) or 'no body'}: leave the term out, "
            "or choose a world that has it"
        )
    return list(names).index(wanted) - len(names)
