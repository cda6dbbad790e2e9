"""The joint-embedding predictive architecture: an encoder and a predictor that meet in the space of states.

Legend: B batch, T time, C H W image, D state, P body, A action, S candidates, H horizon, h history, N starts.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from lightning_jepa.protocols import Encoder, Predictor
from lightning_jepa.world_model.ego import EgoModel


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
        following = []
        for t in range(past, actions.shape[1]):
            context = context[:, -memory:]
            step = self.predictor(context, unit[:, t + 1 - context.shape[1] : t + 1])[:, -1:]
            if self.ego is not None:
                body = self.ego(step, body, unit[:, t : t + 1])
            following.append(torch.cat([step, body], -1) if self.ego is not None else step)
            context = step if memory == 1 else torch.cat([context, step], 1)
        return torch.cat(following, 1)

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

    def energies(self, states: Tensor, actions: Tensor, horizon: int, every: int = 1) -> dict[str, Tensor]:
        """Multi-step prediction energy D(s_y, Pred(s_x, a)) of encoded trajectories (paper section 4.4).

        From every `every`-th state a free-running prediction of `horizon` steps is compared with the encoded states:
        E = |s[t+k] - s~[t+k]|^2 / D. Each starts from one encoded state alone, as a planner's does.

        The body is predicted from encoded states, a step at a time, so that their gradients teach the encoder to keep
        what matters to the body. Through free-running predictions the few moments that hurt shake the predictor: its
        error one step ahead was five times as large.

        Args:
            states: encoded states [B, T, D].
            actions: [B, T - 1, A].
            horizon: H, steps of each prediction.
            every: distance between starts, in steps.

        Returns:
            `prediction` [B, N, H], N = (T - 1 - H) // every + 1, whose mean over B and N is the error at each step
            ahead; and `body` [B, T - 1] if there is one.

        Raises:
            ValueError: if the window is too short for the horizon, or the horizon for the predictor's history.
        """
        self._check(states, 3, actions, 3, "states [B, T, D] and actions [B, T - 1, A]")
        steps = states.shape[1] - 1
        if actions.shape[1] != steps or not 1 <= horizon <= steps or every < 1:
            raise ValueError(
                f"{states.shape[1]} states, {actions.shape[1]} actions, horizon={horizon}, every={every}: a window of "
                f"T states needs T - 1 actions, a horizon of 1 to T - 1 and every >= 1"
            )
        if horizon < self.predictor.history:
            raise ValueError(
                f"horizon={horizon} never fills the predictor's history of {self.predictor.history} states, and plans "
                f"would: set world_model.history to at most {horizon}"
            )
        starts = states[:, : steps - horizon + 1 : every]
        sequences = actions.unfold(1, horizon, every).transpose(-1, -2)  # [B, N, H, A]
        encoded = states[:, 1:].unfold(1, horizon, every).transpose(-1, -2)  # [B, N, H, D]
        predicted = self.predict(starts.flatten(0, 1), sequences.flatten(0, 1)).unflatten(0, starts.shape[:2])
        error, split = (predicted - encoded).square(), self.external_size
        energies = {"prediction": error[..., :split].mean(-1)}
        if self.ego is None:
            return energies
        felt = self.ego(states[:, 1:, :split], states[:, :-1, split:], actions / self.action_scale)
        return energies | {"body": (felt - states[:, 1:, split:]).square().mean(-1)}

    def _check(self, s: Tensor, s_dims: int, actions: Tensor, action_dims: int, expected: str) -> None:
        sizes = (self.state_size, self.predictor.action_size)
        fits = s.dim() == s_dims and actions.dim() == action_dims and s.shape[0] == actions.shape[0]
        if not fits or (s.shape[-1], actions.shape[-1]) != sizes:
            raise ValueError(
                f"states of shape {tuple(s.shape)} and actions of shape {tuple(actions.shape)}: expected {expected} "
                f"with D={sizes[0]} and A={sizes[1]}"
            )
