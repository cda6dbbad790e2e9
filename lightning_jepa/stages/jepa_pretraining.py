"""Training stage 1: perception and world model learn to predict in the space of states.

Legend: B batch, T time, D state, A action, N starts, H horizon, E metric space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_jepa.stages.monitors import LinearProbe
from lightning_jepa.stages.schedule import rise_and_fall
from lightning_jepa.types import Encoded, Window
from lightning_jepa.world_model.hierarchy import HierarchicalJEPA
from lightning_jepa.world_model.jepa import JEPA, following
from lightning_jepa.world_model.spread import Spread
from lightning_jepa.world_model.target import SlowEncoder


class JEPAPretraining(L.LightningModule):
    """Minimise the prediction energy D(s_y, Pred(s_x, a)) while criteria keep states informative (paper section 4.5).

        loss = sum_i weight_i term_i,   terms = prediction + those of each criterion [+ contrast [+ imagined]]

    No gradient is stopped between the two branches, unless a `target` encodes what is to be predicted. The first level
    of a batch holds successive frames: predictions and criteria look at it. With a `geometry`, all levels, whatever the
    steps between their frames, teach a metric for planning.

    Args:
        jepa: encoder and predictor.
        criteria: name -> criterion, a module from an `Encoded` batch to terms.
        weights: term -> weight, exactly the terms that there are.
        optimizer: from groups of parameters to an optimizer.
        horizon: H, steps of each free-running prediction.
        every: steps between the starts of two predictions.
        warm_up: share of the steps in which the learning rate rises, before it falls along a cosine.
        settled: share of the steps after which the encoder stays as it is, and what predicts learns on: what is to be
            predicted then no longer moves.
        geometry: a criterion of states and the steps between them, with a `metric` from states [..., D] to [..., E]
            that learns from predictions too if some are `imagined`; or none: distances of states.
        target: what makes a second branch of the encoder, which gets no gradient; none for one encoder.
        context: states that a prediction starts from.
        views: makes pairs of pictures of the first level's windows of one; none for windows as they are.

    Raises:
        ValueError: if a share is out of its range; with the first batch, if the weights do not match the terms or the
            batch's levels do not fit.
    """

    cost = policy = None  # come with the stages above
    jepa: JEPA | HierarchicalJEPA

    def __init__(
        self,
        jepa: JEPA,
        criteria: Mapping[str, nn.Module],
        weights: Mapping[str, float],
        optimizer: Callable[[list[dict[str, Any]]], Optimizer],
        horizon: int = 8,
        every: int = 8,
        warm_up: float = 0.05,
        geometry: nn.Module | None = None,
        target: Callable[[nn.Module], SlowEncoder] | None = None,
        context: int = 1,
        views: nn.Module | None = None,
        settled: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 < settled <= 1:
            raise ValueError(f"stage.settled={settled}: give a share of the steps, above 0 and at most 1")
        self.jepa, self.geometry, self.views = jepa, geometry, views
        self.target = None if target is None else target(self._encoder)
        self.criteria = nn.ModuleDict(dict(criteria))
        self.weights, self.optimizer = dict(weights), optimizer
        self.horizon, self.every, self.context = horizon, every, context
        self.warm_up, self.settled = warm_up, settled
        self.spread = Spread(jepa.state_size)
        self.probe: LinearProbe | None = None  # named after the data's factors, which are known once fitting starts

    @property
    def model(self) -> JEPA:
        """What is trained; in a hierarchy, the level."""
        assert isinstance(self.jepa, JEPA)
        return self.jepa

    @property
    def _encoder(self) -> nn.Module:
        encoder = self.model.encoder
        assert isinstance(encoder, nn.Module)
        return encoder

    @property
    def metric(self) -> nn.Module:
        """The space in which distances are costs: states [..., D] -> [..., E]."""
        metric = nn.Identity() if self.geometry is None else self.geometry.metric
        assert isinstance(metric, nn.Module)
        return metric

    def setup(self, stage: str) -> None:
        """Take the statistics of the pictures, and the names of the factors that probes look for, from the data."""
        if stage == "fit":
            data = self.trainer.datamodule  # type: ignore[attr-defined]  # set by fit, unknown to its stubs
            self._standardise(*data.statistics)
            self.probe = LinearProbe(data.manifest.truth_names)

    def _standardise(self, mean: Tensor, std: Tensor) -> None:
        for branch in (self.model, self.target):
            if branch is not None:
                encoder: Any = branch.encoder  # every encoder standardises its pictures
                encoder.standardise.set(mean, std)

    def terms(self, windows: tuple[Window, ...]) -> tuple[dict[str, Tensor], Tensor]:
        """All terms of the loss, unweighted, and the states [B, T, D] of the first level."""
        dense = windows[0]
        actions = self.acted(dense)
        states = self.model.encode(dense.observations, dense.body)
        batch, energies = self._encoded(dense.observations, states, actions)
        terms = {name: energy.mean() for name, energy in energies.items()}
        if self.model.ego is not None:
            terms["body"] = self.model.felt(states, actions).mean()
        for criterion in self.criteria.values():
            terms |= criterion(batch)
        if self.geometry is not None:
            geometry: Any = self.geometry
            encoded = [states] + [self.model.encode(window.observations, window.body) for window in windows[1:]]
            found = [geometry(s, self.apart(window)) for s, window in zip(encoded, windows, strict=True)]
            terms |= {name: torch.stack([level[name] for level in found]).mean() for name in found[0]}
            if geometry.imagined:
                terms["imagined"] = geometry.misled(*self._deep(batch, states, actions, geometry.imagined))
        return terms, states

    def _deep(self, batch: Encoded, states: Tensor, actions: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Predictions of so many steps at least, and what came: those that training minimises, or longer ones."""
        if steps <= self.horizon:
            return batch.predicted, batch.s_y
        predicted, _ = self.model.predictions(states, actions, states, steps, steps, self.context)
        return predicted[..., : self.model.external_size], following(batch.states, steps, steps, self.context)

    def acted(self, window: Window) -> Tensor:
        """What was done between successive states, [B, T - 1, A].

        Raises:
            ValueError: if that is more than one action.
        """
        if window.actions.shape[2] != 1:
            raise ValueError(
                f"the first level's frames are {window.actions.shape[2]} steps apart, and predictions go step by step: "
                f"give the first of data.levels stride 1"
            )
        return window.actions[:, :, 0]

    def apart(self, window: Window) -> int:
        """How many steps there are between the states of a window."""
        return window.actions.shape[2]

    def _encoded(self, observations: Tensor, states: Tensor, actions: Tensor) -> tuple[Encoded, dict[str, Tensor]]:
        """What criteria look at, of pictures [B, T, C, H, W], states [B, T, D], actions [B, T - 1, A]; and energies."""
        external = slice(self.model.external_size)  # what is felt needs no criterion: it can't collapse
        seen = states[..., external]
        encoded = seen if self.target is None else self.target(observations)
        predicted, energies = self.model.predictions(states, actions, encoded, self.horizon, self.every, self.context)
        s_y, y = (following(sequence, self.horizon, self.every, self.context) for sequence in (encoded, observations))
        done = actions.detach() / self.model.action_scale  # those that are learned themselves are no place to hide in
        return Encoded(seen, done, predicted[..., external], s_y, y), energies

    def viewed(self, windows: tuple[Window, ...]) -> tuple[Window, ...]:
        """Pairs of views, where there are any; they are made where the model is."""
        return windows if self.views is None else (self.views(windows[0]), *windows[1:])

    def training_step(self, batch: tuple[Window, ...], batch_idx: int) -> Tensor:
        """The weighted sum of all terms."""
        terms, _ = self.terms(self.viewed(batch))
        loss = self.weighted(terms)
        self.log_dict({f"train/{name}": term for name, term in terms.items()})
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def weighted(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The sum of all terms by their weights.

        Raises:
            ValueError: if the weights do not name exactly the terms, or an energy is not finite.
        """
        if terms.keys() != self.weights.keys():
            raise ValueError(
                f"stage.weights has {sorted(self.weights)}, the criteria give {sorted(terms)}: name exactly these"
            )
        loss = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        if not torch.isfinite(loss):
            spoilt = [name for name, term in terms.items() if not torch.isfinite(term)] or ["their weighted sum"]
            raise ValueError(
                f"step {self.global_step}: {', '.join(spoilt)} is not finite. The last checkpoint stays as it is: "
                "lower the learning rate or the weight of that term, and go on with resume=auto"
            )
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        """The second branch follows."""
        if self.target is not None:
            self.target.follow(self._encoder)

    def validation_step(self, batch: tuple[Window, ...], batch_idx: int) -> None:
        """The same terms on layouts that were never trained on, and what the states hold."""
        mask = batch[0].mask
        rows = int(mask.sum())
        # Ranks average together, so one that got nothing but padding takes part, with weight 0; and criteria need two
        # windows to tell apart, so a last one takes its copies along.
        kept = mask if rows > 1 else torch.ones_like(mask)
        windows = self.viewed(tuple(Window(*(part[kept] for part in window)) for window in batch))
        terms, states = self.terms(windows)
        self.log_dict(
            {f"val/{name}": term for name, term in terms.items()}, batch_size=rows, on_epoch=True, sync_dist=True
        )
        few = slice(None, None, max(1, states.shape[1] // 4))
        samples, truth = (part[:rows, few].flatten(0, 1) for part in (states, windows[0].truth))
        self.spread.update(samples)
        if self.probe is not None:
            # Layouts are told apart by their factors: all but the first two, the agent's place, that stay as they are.
            whole = windows[0].truth
            factors = (whole == whole[:, :1]).all(1).all(0)
            factors[:2] = False
            self.probe.update(samples, truth, truth * factors)

    def on_validation_epoch_end(self) -> None:
        """Log the monitors."""
        found = {f"monitor/{name}": value for name, value in self.spread.compute().items()}
        self.spread.reset()
        if self.probe is not None:
            found |= {f"probe/{name}_r2": value for name, value in self.probe.compute().items()}
            self.probe.reset()
        self.log_dict(found, sync_dist=True)  # they are the same on all ranks already, which Lightning can't know

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One optimizer, one schedule, in which the encoder may come to rest before all else."""
        optimizer = self.optimizer(self._split(list(self.parameters())))
        return rise_and_fall(optimizer, self.trainer, self.warm_up, self._done)

    @property
    def _done(self) -> tuple[float, ...]:
        """When each group of `_split` comes to rest."""
        return (1.0,) if self.settled == 1 else (self.settled, 1.0)

    def _split(self, parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
        """Groups of parameters, which all optimizers take: the encoder's and the others, or one of all."""
        if self.settled == 1:
            return [{"params": parameters}]
        settling = {id(weight) for weight in self._encoder.parameters()}
        first = [weight for weight in parameters if id(weight) in settling]
        return [{"params": first}, {"params": [weight for weight in parameters if id(weight) not in settling]}]
