"""A JEPA with a latent variable: futures are many, and z says which (paper sections 4.2 to 4.4, Fig. 13).

Legend: B N batch, D state, A action, Z latent, S candidates, M scenarios, H horizon, h history, U uniform numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_jepa.protocols import Encoder
from lightning_jepa.world_model.ego import EgoModel
from lightning_jepa.world_model.jepa import JEPA, SizedPredictor, following
from lightning_jepa.world_model.latent.inference import Inferred, LatentVariable, Predict


class Completion(NamedTuple):
    """A continuation as the model explains it, step by step; F of a step is distance + regulariser."""

    predicted: Tensor  # s~_y [B, H, D], each step from the one predicted before it
    z: Tensor  # [B, H, Z]
    distance: Tensor  # [B, H]
    regulariser: Tensor  # [B, H]
    loss: Tensor  # [B, H]: what training minimises in place of the distance
    terms: dict[str, Tensor]  # and beside it, each [B, H]

    @property
    def energy(self) -> Tensor:
        """F(x, y) = min over z of E(x, y, z), the mean over steps, each of which has the z best for itself, [B]."""
        return (self.distance + self.regulariser).mean(1)


class LatentJEPA(JEPA):
    """s[t+1] = Pred(s[t], a[t], z[t]).

    To the predictor z is more action ("no conceptual difference between an action and a latent variable", section 5):
    it gets [a | z]. z is inferred where a continuation is given, step by step with free-running predictions; drawn from
    p(z | s, a) where scenarios are asked for; and the likeliest one where nothing is said.

    Args:
        latent: z, of the predictor's action size less the world's.
        encoder, predictor, action_scale, rollout_block, ego: see `JEPA`.

    Raises:
        ValueError: as `JEPA`, or if the predictor has no room for z, or z knows more or less than the predictor.
    """

    def __init__(
        self,
        latent: LatentVariable,
        encoder: Encoder,
        predictor: SizedPredictor,
        action_scale: float = 1.0,
        rollout_block: int = 512,
        ego: EgoModel | None = None,
    ) -> None:
        super().__init__(encoder, predictor, action_scale, rollout_block, ego)
        if predictor.action_size != latent.action_size + latent.size:
            raise ValueError(
                f"the predictor takes actions of {predictor.action_size} numbers, the latent variable expects "
                f"{latent.action_size} of the world (latent.action_size) and has {latent.size}: set "
                f"world_model.action_size to the world's action size + {latent.size}"
            )
        if latent.state_size != predictor.history * predictor.state_size:
            raise ValueError(
                f"the latent variable knows {latent.state_size} numbers, the predictor {predictor.history} state(s) of "
                f"{predictor.state_size}: set latent.state_size to {predictor.history * predictor.state_size}"
            )
        self.latent = latent

    @property
    def noise(self) -> int:
        """U."""
        return self.latent.noise

    @property
    def action_size(self) -> int:
        """A."""
        return self.predictor.action_size - self.latent.size

    def complete(self, s: Tensor, actions: Tensor, s_y: Tensor) -> Completion:
        """Explain what followed s [B, D] or [B, h, D] by actions [B, h - 1 + H, A]: z[t] = argmin over z of E[t].

        Each z is that of its own step, given those before it: to try all sequences would cost K to the power of H, and
        what a worse step makes possible later is missed (with four codes and two steps the energy was 4 % above that
        minimum). The body, if there is one, is not explained.

        Args:
            s, actions: see `predict`.
            s_y: what followed, [B, H, D].
        """
        external, found = s_y[..., : self.external_size], []

        def step(i: int, context: Tensor, before: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
            inferred = self._infer(context, before, action, external[:, i])
            found.append(inferred)
            return inferred.predicted, torch.cat([action, inferred.z], -1)

        predicted = self._imagine(s, actions, step)
        z, distance, regulariser, loss = (
            torch.stack([getattr(one, name) for one in found], 1) for name in ("z", "distance", "regulariser", "loss")
        )
        terms = {name: torch.stack([one.terms[name] for one in found], 1) for name in found[0].terms}
        return Completion(predicted, z, distance, regulariser, loss, terms)

    def energy(self, s: Tensor, actions: Tensor, s_y: Tensor) -> Tensor:
        """F(x, y) = min over z of E(x, y, z), [B]: see `JEPA.energy` and, for the z that attains it, `complete`."""
        return self.complete(s, actions, s_y).energy

    def predictions(
        self, states: Tensor, actions: Tensor, s_y: Tensor, horizon: int, every: int = 1, context: int = 1
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As `JEPA.predictions`, with the z that explain s_y; the terms are those of the latent variable too."""
        starts, sequences = self._starts(states, actions, horizon, every, context)
        shape, aim = starts.shape[:2], following(s_y, horizon, every, context)
        found = self.complete(starts.flatten(0, 1), sequences.flatten(0, 1), aim.flatten(0, 1))
        terms = {"prediction": found.loss} | found.terms
        return found.predicted.unflatten(0, shape), {name: term.unflatten(0, shape) for name, term in terms.items()}

    def scenarios(self, s: Tensor, actions: Tensor, uniform: Tensor) -> Tensor:
        """As `JEPA.scenarios`, z being drawn of p(z | s, a) by the same numbers for all candidates."""
        episodes, candidates = actions.shape[:2]
        count, (scenarios, horizon) = episodes * candidates, uniform.shape[:2]
        sequences = actions.flatten(0, 1).repeat_interleave(scenarios, 0)
        start = s.repeat_interleave(candidates * scenarios, 0)
        chance = uniform.to(s).repeat(count, 1, 1)

        def step(i: int, context: Tensor, before: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
            return self._with(self.latent.draw(self._known(context), action, chance[:, i]), context, before, action)

        states = self._imagine(start, sequences, step)
        return states.view(episodes, candidates, scenarios, horizon, -1)

    def outcomes(self, s: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """See `JEPA.outcomes`: one for each z that the latent variable branches over."""
        self._check_markov()
        z, chances = self.latent.outcomes(self._known(s[:, None, : self.external_size]), actions / self.action_scale)
        chosen = z.flatten(0, 1)

        def step(i: int, context: Tensor, before: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
            return self._with(chosen, context, before, action)

        count = z.shape[1]
        states = self._imagine(s.repeat_interleave(count, 0), actions.repeat_interleave(count, 0)[:, None], step)
        return states.view(len(s), count, -1), chances

    def _known(self, context: Tensor) -> Tensor:
        """What z depends on, of t <= h successive states [N, t, D]: [N, h D], the first standing for those before."""
        missing = self.predictor.history - context.shape[1]
        return torch.cat([context[:, :1].expand(-1, missing, -1), context], 1).flatten(1)

    def _step(self, i: int, context: Tensor, before: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        return self._with(self.latent.likeliest(self._known(context), action), context, before, action)

    def _with(self, z: Tensor, context: Tensor, before: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        control = torch.cat([action, z.to(action)], -1)
        return self.predictor(context, torch.cat([before, control[:, None]], 1)), control

    def _infer(self, context: Tensor, before: Tensor, action: Tensor, s_y: Tensor) -> Inferred:
        if torch.is_inference_mode_enabled():
            # What was made in that mode can't take part in a graph, which a descent needs; copies made outside can.
            with torch.inference_mode(False), torch.no_grad():
                return self._infer(context.clone(), before.clone(), action.clone(), s_y.clone())
        return self.latent.infer(self._ahead(context, before, action), self._known(context), action, s_y)

    def _ahead(self, context: Tensor, before: Tensor, action: Tensor) -> Predict:
        """One step for any z."""

        def predict(z: Tensor) -> Tensor:
            guesses = z.shape[1]
            controls = torch.cat([action[:, None].expand(-1, guesses, -1), z.to(action)], -1)[:, :, None]
            told = torch.cat([before[:, None].expand(-1, guesses, -1, -1), controls], 2)
            return self.predictor(context[:, None], told)

        return predict

    def _controls(self, states: Tensor, actions: Tensor) -> Tensor:
        """Actions and the z that explain given states [B, h, D]: [B, h - 1, A + Z]."""
        controls = actions.new_zeros(len(actions), 0, self.predictor.action_size)
        for t in range(actions.shape[1]):
            context = states[:, max(0, t + 1 - self.predictor.history) : t + 1]
            before = controls[:, controls.shape[1] + 1 - context.shape[1] :]
            z = self._infer(context, before, actions[:, t], states[:, t + 1]).z
            controls = torch.cat([controls, torch.cat([actions[:, t], z], -1)[:, None]], 1)
        return controls
