"""Latent variables: what they can explain, and what is drawn from p(z | s, a)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from latents import KINDS, A, D, Identity, Shift, spoilt, transitions, world_model
from torch import nn

from lightning_jepa.actor.planners.cem import CEM
from lightning_jepa.actor.planners.gradient import Gradient
from lightning_jepa.actor.planners.scenarios import ScenarioPlanner
from lightning_jepa.types import Modulation
from lightning_jepa.world_model.energy import rank, surprise
from lightning_jepa.world_model.jepa import JEPA
from lightning_jepa.world_model.latent.continuous import ContinuousLatent
from lightning_jepa.world_model.latent.discrete import DiscreteLatent
from lightning_jepa.world_model.latent.noisy import NoisyLatent
from lightning_jepa.world_model.latent.sparse import SparseLatent
from lightning_jepa.world_model.latent_jepa import LatentJEPA
from lightning_jepa.world_model.residual import ResidualPredictor
from lightning_jepa.world_model.transformer import TransformerPredictor


def test_what_a_step_may_lead_to() -> None:
    """One state for each code, Pred(s, a, k), with the chance p(k | s, a)."""
    torch.manual_seed(0)
    latent = DiscreteLatent(4, D, A)
    jepa = LatentJEPA(latent, Identity(), Shift(torch.randn(4, D)), action_scale=2.0)
    s, a, _ = transitions()
    states, chances = jepa.outcomes(s, a[:, 0])
    torch.testing.assert_close(states, s[:, None] + jepa.predictor.effect)
    torch.testing.assert_close(chances, latent.logits(s, a[:, 0] / 2).softmax(-1))


@pytest.mark.parametrize("kind", ["continuous", "sparse", "noisy"])
def test_gaussian_futures_are_spread_like_their_prior(kind: str) -> None:
    torch.manual_seed(0)
    latent = KINDS[kind]()
    nn.init.normal_(latent.network[-1].weight)
    s, a, _ = transitions()
    mean, std = latent.prior(s, a[:, 0])
    uniform = torch.rand(4000, latent.size)
    for row in range(2):
        z = latent.draw(s[row : row + 1].expand(4000, -1), a[row : row + 1, 0].expand(4000, -1), uniform)
        torch.testing.assert_close((z.mean(0) - mean[row]) / std[row], torch.zeros(latent.size), atol=0.07, rtol=0)
        torch.testing.assert_close(z.std(0) / std[row], torch.ones(latent.size), atol=0.07, rtol=0)
    z, chances = latent.outcomes(s, a[:, 0])
    torch.testing.assert_close(chances.sum(1), torch.ones(len(s)))
    assert z.shape == (len(s), chances.shape[1], latent.size)
    white = (z - mean[:, None]) / std[:, None]
    assert white.mean(1).abs().max() < 0.5
    assert (white.std(1) - 1).abs().max() < 0.7  # of eight
    torch.testing.assert_close(latent.likeliest(s, a[:, 0]), mean)


@pytest.mark.parametrize("kind", KINDS)
def test_a_latent_variable_explains_what_no_single_prediction_does(kind: str) -> None:
    """Two futures of the same state: the energy of both is lower than that of their mean's prediction."""
    torch.manual_seed(0)
    latent = KINDS[kind]()
    jepa = world_model(latent, ResidualPredictor(D, A + latent.size, 32))
    nn.init.normal_(jepa.predictor.change[-1].weight, std=0.1)  # at zero all z are alike
    optimizer = torch.optim.Adam(jepa.parameters(), 1e-2)
    s, a = torch.zeros(64, D), torch.zeros(64, 1, A)
    s_y = torch.where(torch.arange(64)[:, None, None] % 2 == 0, 1.0, -1.0).expand(-1, -1, D)
    for _ in range(300):
        found = jepa.complete(s, a, s_y)
        optimizer.zero_grad()
        sum(term.mean() for term in (found.loss, *found.terms.values())).backward()
        optimizer.step()
    jepa.eval()
    assert jepa.complete(s, a, s_y).distance.mean() < 0.25  # 1 is that of the best single prediction


def test_discrete_futures_are_drawn_by_their_frequency() -> None:
    """p(z | s, a) is learned from the codes that were found; draws are its quantiles."""
    torch.manual_seed(0)
    latent = DiscreteLatent(3, D, A)
    jepa = world_model(latent, ResidualPredictor(D, A + 3, 32))
    nn.init.normal_(jepa.predictor.change[-1].weight, std=0.1)
    optimizer = torch.optim.Adam(jepa.parameters(), 1e-2)
    s, a = torch.zeros(100, D), torch.zeros(100, 1, A)
    s_y = torch.where(torch.arange(100)[:, None, None] < 80, 1.0, -1.0).expand(-1, -1, D)
    for _ in range(300):
        found = jepa.complete(s, a, s_y)
        optimizer.zero_grad()
        (found.loss.mean() + found.terms["prior"].mean()).backward()
        optimizer.step()
    uniform = ((torch.arange(200) + 0.5) / 200)[:, None, None]
    drawn = jepa.scenarios(s[:1], a[:1, None], uniform)[0, 0, :, 0]
    assert ((drawn > 0.5).all(1).float().mean() - 0.8).abs() < 0.05
    assert ((drawn < -0.5).all(1).float().mean() - 0.2).abs() < 0.05


def test_noise_limits_information() -> None:
    """R = strength KL(q | p), which is 0 where the guess is the prior."""
    latent = NoisyLatent(2, D, A, strength=0.5)
    for network in (latent.guess, latent.network):
        for weight in network[-1].parameters():
            nn.init.zeros_(weight)
    s, a, s_y = transitions()
    found = world_model(latent).complete(s, a, s_y)
    assert found.regulariser.abs().max() < 1e-6
    nn.init.constant_(latent.guess[-1].bias, 1.0)
    nats = torch.distributions.kl_divergence(
        torch.distributions.Normal(torch.ones(2), torch.e * torch.ones(2)),
        torch.distributions.Normal(torch.zeros(2), torch.ones(2)),
    ).sum()
    torch.testing.assert_close(world_model(latent).complete(s, a, s_y).regulariser[0, 0], 0.5 * nats)


@pytest.mark.parametrize("kind", ["discrete", "noisy"])
def test_a_prior_knows_as_many_states_as_the_predictor(kind: str) -> None:
    """p(z | s, a) of a history, which tells how things moved; where less is known, the first state stands for it."""
    torch.manual_seed(0)
    latent = DiscreteLatent(3, 3 * D, A) if kind == "discrete" else NoisyLatent(3, 3 * D, A, next_size=D)
    jepa = world_model(latent, TransformerPredictor(D, A + 3, history=3, width=16, heads=2)).eval()
    nn.init.normal_(jepa.predictor.change.weight)
    seen, actions, s_y = torch.randn(4, 3, D), torch.randn(4, 3, A), torch.randn(4, 1, D)
    z = latent.likeliest(seen.flatten(1), actions[:, -1])
    controls = torch.cat([jepa._controls(seen, actions[:, :2]), torch.cat([actions[:, 2:], z[:, None]], -1)], 1)
    torch.testing.assert_close(jepa.predict(seen, actions)[:, 0], jepa.predictor(seen, controls))
    assert torch.isfinite(jepa.complete(seen, actions, s_y).energy).all()
    still = seen[:, :1].expand(-1, 3, -1)
    torch.testing.assert_close(jepa._known(seen[:, :1]), still.flatten(1))
    with pytest.raises(ValueError, match="set latent.state_size to 9"):
        world_model(DiscreteLatent(3, D, A), TransformerPredictor(D, A + 3, history=3, width=16, heads=2))


def test_scenarios_share_their_luck() -> None:
    """The same numbers, the same future: two equal candidates can't differ, and of another one only by what it does."""
    torch.manual_seed(0)
    jepa = world_model(DiscreteLatent(4, D, A))
    s = torch.randn(2, D)
    actions = torch.randn(2, 1, 5, A).expand(-1, 3, -1, -1)
    states = jepa.scenarios(s, actions, torch.rand(6, 5, 1))
    assert states.shape == (2, 3, 6, 5, D)
    assert torch.equal(states[:, 0], states[:, 2])
    assert states[:, 0].std(1).max() > 0.1


def test_without_a_latent_variable_all_scenarios_are_alike() -> None:
    jepa = JEPA(Identity(), ResidualPredictor(D, A))
    s, actions = torch.randn(2, D), torch.randn(2, 3, 4, A)
    states = jepa.scenarios(s, actions, torch.rand(5, 4, jepa.noise))
    for m in range(5):
        assert torch.equal(states[:, :, m], jepa.rollout(s, actions))
    energy = jepa.energy(s, actions[:, 0], states[:, 0, 0])
    torch.testing.assert_close(energy, torch.zeros(2))


def test_gradients_pass_through_scenarios() -> None:
    torch.manual_seed(0)
    planner = Gradient(restarts=2, iterations=30, horizon=2, action_size=A, action_bound=1.0, step_size=0.1, spread=0.5)
    jepa = world_model(DiscreteLatent(2, D, A), ResidualPredictor(D, A + 2, 16))
    nn.init.normal_(jepa.predictor.change[-1].weight)
    modulation = Modulation(torch.zeros(1, D))
    costs = [
        ScenarioPlanner(chosen, 8)
        .plan(torch.zeros(1, D), jepa, lambda s, a, m: s.square().sum(-1), modulation, generator=torch.Generator())
        .cost
        for chosen in (planner, CEM(1, 1, 1, horizon=2, action_size=A, action_bound=1.0))
    ]
    assert costs[0] <= costs[1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiscreteLatent(1, D, A), "at least 2 codes"),
        (lambda: DiscreteLatent(4, D, A, relaxation=1.0), "relaxation"),
        (lambda: ContinuousLatent(0, D, A), "at least 1"),
        (lambda: SparseLatent(4, D, A, strength=0.0), "above 0"),
        (lambda: NoisyLatent(2, D, A, refinement=-1), "refinement"),
        (lambda: world_model(DiscreteLatent(4, D, A), ResidualPredictor(D, 3)), "world's action size"),
        (
            lambda: world_model(DiscreteLatent(4, D, A, hidden=8, memory_gb=9e-7)).complete(*transitions()),
            "trying 4 codes for 7 transitions .* lower latent.codes",
        ),
        (
            lambda: DiscreteLatent(10**7, D, A),
            "knowing 10000000 codes takes .* GiB and more, latent.memory_gb=8 is allowed: lower latent.codes",
        ),
        (
            lambda: world_model(ContinuousLatent(2, D, A, memory_gb=1e-9)).complete(*transitions()),
            "descending from 4 starts .* lower latent.starts",
        ),
        (lambda: ContinuousLatent(30_000, D, A), "at most 21201"),
        (
            lambda: JEPA(Identity(), TransformerPredictor(D, A, history=3, width=16, heads=2)).outcomes(
                torch.zeros(1, D), torch.zeros(1, A)
            ),
            "history=1",
        ),
        (lambda: rank(world_model(spoilt()), *transitions()[:2], torch.zeros(7, 2, 1, D)), "14 of 14 energies"),
        (lambda: surprise(world_model(spoilt()), torch.zeros(2, 3, D), torch.zeros(2, 2, A)), "4 of 4 energies"),
    ],
)
def test_what_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
