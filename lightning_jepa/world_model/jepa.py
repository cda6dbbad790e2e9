"""The joint-embedding predictive architecture: an encoder and a predictor that meet in the space of states.

Legend: B batch, T time, C H W image, D state, P body, A action, S candidates, H horizon, h history, N starts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from lightning_jepa.protocols import Encoder, Predictor
from lightning_jepa.world_model.ego import EgoModel

# (index, context [B, h, D], controls before [B, h - 1, ...], action [B, A]) -> next state [B, D], its control [B, ...]
Step = Callable[[int, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class SizedPredictor(Predictor, Protocol):
    """A predictor that says what it takes."""

    state_size: int
    action_size: int


class JEPA(nn.Module):
    """World model s[t+1] = Pred(s[t], a[t]) over states s = Enc(x) (paper section 4.4, Fig. 12).

    Gradients of the prediction energy reach both the predicted and the encoded side: nothing is detached. With an ego
    model, the state is s = [external | body]: what is felt stays readable as its last P numbers, so that an immutable
    cost can act on what is predicted of it.

    Args:
        encoder: perception.
        predictor: one prediction step.
        action_scale: actions are divided by it, so that networks see numbers of about unit size; the largest norm of
            an action of the world is a good choice.
        rollout_block: sequences that are rolled out together on a CPU. Its caches then hold the activations, which
            makes maps of 16 x 9 x 9 about 1.4 times faster than all at once. Other devices roll all out at once.
        ego: predicts the body from the predicted external state; none for worlds without a body.

    Raises:
        ValueError: if encoder and predictor have states of different sizes.
    """

    def __init__(
        self,
        encoder: Encoder,
        predictor: SizedPredictor,
        action_scale: float = 1.0,
        rollout_block: int = 512,
        ego: EgoModel | None = None,
    ) -> None:
        super().__init__()
        if encoder.state_size != predictor.state_size:
            raise ValueError(
                f"perception gives states of {encoder.state_size} numbers, the predictor expects "
                f"{predictor.state_size}: set the sizes of perception and world_model to the same"
            )
        if not action_scale > 0 or rollout_block < 1:
            raise ValueError(f"action_scale={action_scale} and rollout_block={rollout_block} must be above 0")
        self.encoder, self.predictor, self.ego = encoder, predictor, ego
        self.action_scale, self.rollout_block = action_scale, rollout_block

    @property
    def noise(self) -> int:
        """Numbers in [0, 1) that decide what happens in a step of a scenario; none without a latent variable."""
        return 0

    @property
    def action_size(self) -> int:
        """A."""
        return self.predictor.action_size

    @property
    def external_size(self) -> int:
        """Numbers of the external state, which come first."""
        return self.predictor.state_size

    @property
    def body_size(self) -> int:
        """P, the last numbers of a state."""
        return self.ego.body_size if self.ego is not None else 0

    @property
    def state_size(self) -> int:
        """D."""
        return self.external_size + self.body_size

    def encode(self, observations: Tensor, body: Tensor | None = None) -> Tensor:
        """uint8 [B, T, C, H, W] and what is felt [B, T, P] -> s [B, T, D]; without the latter its part is zero.

        Raises:
            ValueError: if the body has another size than the ego model was built for.
        """
        s = self.encoder(observations)
        if body is None:
            body = s.new_zeros(*s.shape[:2], self.body_size)
        if body.shape != (*s.shape[:2], self.body_size):
            raise ValueError(
                f"a body of shape {tuple(body.shape)}: expected {[*s.shape[:2], self.body_size]}. Give the JEPA an ego "
                "model (stage.jepa.ego) of the size that the world's body has, or none in worlds without"
            )
        return torch.cat([s, body], -1) if self.body_size else s

    def predict(self, s: Tensor, actions: Tensor) -> Tensor:
        """Free-running prediction: each predicted state is the input of the next step.

        Args:
            s: one state [B, D], or the last h states [B, h, D].
            actions: [B, h - 1 + H, A]: the h - 1 that were taken within the history, then those to imagine.

        Returns:
            the H states that follow the last one given, [B, H, D].

        Raises:
            ValueError: if shapes do not fit.
        """
        return self._imagine(s, actions, self._step)

    def _step(self, i: int, context: Tensor, before: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """The state after the last one of a context, and the control that led there: see `_imagine`."""
        return self.predictor(context, torch.cat([before, action[:, None]], 1)), action

    def _imagine(self, s: Tensor, actions: Tensor, step: Step) -> Tensor:
        """As `predict`, by `step`: what it chooses beside, such as a latent variable, is part of the control."""
        context = s[:, None] if s.dim() == 2 else s
        self._check(context, 3, actions, 3, "s [B, D] or [B, h, D] and actions [B, h - 1 + H, A]")
        past = context.shape[1] - 1
        if actions.shape[1] <= past:
            raise ValueError(
                f"{actions.shape[1]} actions for a history of {past + 1} states: give the {past} taken in between "
                f"and at least one to imagine"
            )
        memory = self.predictor.history
        unit = actions / self.action_scale
        context, body = context[..., : self.external_size], context[:, -1:, self.external_size :]
        controls = self._controls(context, unit[:, :past])
        following = []
        for i in range(actions.shape[1] - past):
            context = context[:, -memory:]
            before = controls[:, controls.shape[1] + 1 - context.shape[1] :]
            action = unit[:, past + i]
            found, control = step(i, context, before, action)
            external = found[:, None]
            if self.ego is not None:
                body = self.ego(external, body, action[:, None])
            following.append(torch.cat([external, body], -1) if self.ego is not None else external)
            if memory == 1:
                context = external
            else:
                context, controls = torch.cat([context, external], 1), torch.cat([controls, control[:, None]], 1)
        return torch.cat(following, 1)

    def _controls(self, states: Tensor, actions: Tensor) -> Tensor:
        """What led from each of the given states [B, h, D] to the next one: the actions [B, h - 1, A]."""
        return actions

    def rollout(self, s: Tensor, actions: Tensor) -> Tensor:
        """Imagine S candidate sequences from the same state, as a planner needs (paper section 3.1.2).

        Args:
            s: [B, D].
            actions: [B, S, H, A]; gradients reach them where grad is enabled.

        Returns:
            the states that follow each action, [B, S, H, D].

        Raises:
            ValueError: if shapes do not fit.
        """
        self._check(s, 2, actions, 4, "s [B, D] and actions [B, S, H, A]")
        episodes, candidates, horizon = actions.shape[:3]
        count = episodes * candidates
        block = min(self.rollout_block, count) if s.device.type == "cpu" else count
        owner = torch.arange(count, device=s.device) // candidates
        sequences = actions.flatten(0, 1)
        states = s.new_empty(count, horizon, s.shape[1])
        for first in range(0, count, block):
            rows = slice(first, first + block)
            states[rows] = self.predict(s[owner[rows]], sequences[rows])
        return states.unflatten(0, (episodes, candidates))

    def scenarios(self, s: Tensor, actions: Tensor, uniform: Tensor) -> Tensor:
        """Imagine S candidates in M scenarios each; without a latent variable all scenarios are alike.

        Args:
            s: one state [B, D], or the last h states [B, h, D].
            actions: [B, S, h - 1 + H, A].
            uniform: what happens in each scenario and step, numbers in [0, 1), [M, H, U].

        Returns:
            [B, S, M, H, D].
        """
        if s.dim() == 3:
            states = self.predict(s.repeat_interleave(actions.shape[1], 0), actions.flatten(0, 1))
            return states.unflatten(0, actions.shape[:2])[:, :, None].expand(-1, -1, len(uniform), -1, -1)
        return self.rollout(s, actions)[:, :, None].expand(-1, -1, len(uniform), -1, -1)

    def outcomes(self, s: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """What one step may lead to, from s [N, D] by actions [N, A]: M states [N, M, D] and their chances [N, M].

        Raises:
            ValueError: if the predictor looks back on more than that one state.
        """
        self._check_markov()
        return self.predict(s, actions[:, None]), s.new_ones(len(s), 1)

    def _check_markov(self) -> None:
        if self.predictor.history > 1:
            raise ValueError(
                f"what single states lead to is asked of a predictor that looks back on {self.predictor.history}: give "
                "world_model.history=1, or a planner that searches for sequences"
            )

    def energy(self, s: Tensor, actions: Tensor, s_y: Tensor) -> Tensor:
        """F(x, y) of continuations: low if what follows is compatible with what is known (paper section 4.1).

        Args:
            s: one state [B, D], or the last h states [B, h, D].
            actions: [B, h - 1 + H, A].
            s_y: what follows, [B, H, D].

        Returns:
            [B], a mean over the steps; the body, if there is one, does not count.
        """
        split = self.external_size
        return (self.predict(s, actions)[..., :split] - s_y[..., :split]).square().mean((1, 2))

    def predictions(
        self, states: Tensor, actions: Tensor, s_y: Tensor, horizon: int, every: int = 1, context: int = 1
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Free-running predictions from every `every`-th state, each from the last `context` states up to that one.

            prediction = D(s_y, s~_y) = |s[t+k] - s~[t+k]|^2 / D

        Args:
            states: encoded states [B, T, D].
            actions: [B, T - 1, A].
            s_y: what they are compared with: encoded states [B, T, D], the same or those of a second branch.
            horizon: H, steps of each prediction.
            every: distance between starts, in steps.
            context: h, states that a prediction starts from; 1 as a planner's.

        Returns:
            s~_y [B, N, H, D], N = (T - h - H) // every + 1; `following` says what they are compared with. And the terms
            that training minimises, each [B, N, H].

        Raises:
            ValueError: if the window is too short for the horizon, or the horizon for the predictor's history.
        """
        starts, sequences = self._starts(states, actions, horizon, every, context)
        predicted = self.predict(starts.flatten(0, 1), sequences.flatten(0, 1)).unflatten(0, starts.shape[:2])
        split = self.external_size
        error = (predicted[..., :split] - following(s_y, horizon, every, context)[..., :split]).square().mean(-1)
        return predicted, {"prediction": error}

    def _starts(self, states: Tensor, actions: Tensor, horizon: int, every: int, context: int) -> tuple[Tensor, Tensor]:
        """Of predictions: states [B, N, h, D], and actions between them and from there [B, N, h - 1 + H, A]."""
        self._check(states, 3, actions, 3, "states [B, T, D] and actions [B, T - 1, A]")
        steps, length = states.shape[1] - 1, context - 1 + horizon
        if actions.shape[1] != steps or min(horizon, every, context) < 1 or length > steps:
            raise ValueError(
                f"{states.shape[1]} states, {actions.shape[1]} actions, horizon={horizon}, every={every}, "
                f"context={context}: a window of T states needs T - 1 actions, a context, a horizon and every of at "
                f"least 1, and context + horizon of at most T"
            )
        if length < self.predictor.history:
            raise ValueError(
                f"horizon={horizon} never fills the predictor's history of {self.predictor.history} states, and plans "
                f"would: set world_model.history to at most {length}"
            )
        starts = states[:, : steps - horizon + 1].unfold(1, context, every).transpose(-1, -2)
        return starts, actions.unfold(1, length, every).transpose(-1, -2)

    def felt(self, states: Tensor, actions: Tensor) -> Tensor:
        """Squared error of the ego model along the way, [B, T - 1]; states [B, T, D] and actions [B, T - 1, A].

        The body is predicted from encoded states, so that their gradients teach the encoder to keep what matters to the
        body. Through predicted ones the few moments that hurt shake the predictor: its error one step ahead was five
        times as large. From the first on, it is predicted from what was predicted to be felt, as in a plan: told what
        was felt a step before, pain included, the ego model says that it goes on, and never looks at what it meets.
        """
        assert self.ego is not None, "no body"
        split = self.external_size
        felt = self.ego.along(states[:, 1:, :split], states[:, 0, split:], actions / self.action_scale)
        return (felt - states[:, 1:, split:]).square().mean(-1)

    def _check(self, s: Tensor, s_dims: int, actions: Tensor, action_dims: int, expected: str) -> None:
        sizes = (self.state_size, self.action_size)
        fits = s.dim() == s_dims and actions.dim() == action_dims and s.shape[0] == actions.shape[0]
        if not fits or (s.shape[-1], actions.shape[-1]) != sizes:
            raise ValueError(
                f"states of shape {tuple(s.shape)} and actions of shape {tuple(actions.shape)}: expected {expected} "
                f"with D={sizes[0]} and A={sizes[1]}"
            )


def following(sequence: Tensor, horizon: int, every: int = 1, context: int = 1) -> Tensor:
    """What follows each start of a prediction: [B, T, ...] -> [B, N, H, ...]."""
    return sequence[:, context:].unfold(1, horizon, every).movedim(-1, 2)
