"""The latent variable: F(x, y) = min over z of D(s_y, Pred(s_x, a, z)) + R(z), and what is drawn from p(z | s, a)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_jepa.actor.planners.cem import CEM
from lightning_jepa.actor.planners.gradient import Gradient
from lightning_jepa.actor.planners.scenarios import ScenarioPlanner
from lightning_jepa.types import Modulation
from lightning_jepa.world_model.energy import rank, surprise
from lightning_jepa.world_model.jepa import JEPA
from lightning_jepa.world_model.latent.continuous import ContinuousLatent
from lightning_jepa.world_model.latent.discrete import DiscreteLatent
from lightning_jepa.world_model.latent.inference import distance
from lightning_jepa.world_model.latent.noisy import NoisyLatent
from lightning_jepa.world_model.latent.sparse import SparseLatent
from lightning_jepa.world_model.latent_jepa import LatentJEPA
from lightning_jepa.world_model.residual import ResidualPredictor
from lightning_jepa.world_model.transformer import TransformerPredictor

D, A = 3, 2
KINDS: dict[str, Callable[[], Any]] = {
    "discrete": lambda: DiscreteLatent(4, D, A, strength=0.1),
    "continuous": lambda: ContinuousLatent(2, D, A, strength=0.1),
    "sparse": lambda: SparseLatent(5, D, A),
    "noisy": lambda: NoisyLatent(2, D, A),
}
LONG: dict[str, Callable[[], Any]] = {  # the same, where three states are known
    "discrete": lambda: DiscreteLatent(
        4, 3 * D, A, 0.1, hidden=8, memory_gb=4 * 5 * (D + A + 4) * 4 / 2**30
    ),  # it just fits
    "continuous": lambda: ContinuousLatent(2, 3 * D, A, strength=0.1),
    "sparse": lambda: SparseLatent(5, 3 * D, A),
    "noisy": lambda: NoisyLatent(2, 3 * D, A, next_size=D),
}


def spoilt() -> DiscreteLatent:
    """With weights that are no numbers."""
    latent = DiscreteLatent(4, D, A, strength=0.1)
    nn.init.constant_(latent.prior[-1].weight, torch.nan)
    return latent.eval()


class Identity(nn.Module):
    """States are what is seen."""

    state_size = D

    def forward(self, observations: Tensor) -> Tensor:
        return observations


class Shift(nn.Module):
    """s[t+1] = s[t] + W z[t], whatever is done."""

    history, state_size = 1, D

    def __init__(self, effect: Tensor) -> None:
        super().__init__()
        self.effect = nn.Parameter(effect)
        self.action_size = A + len(effect)

    def forward(self, s: Tensor, a: Tensor) -> Tensor:
        return s[..., -1, :] + a[..., -1, A:] @ self.effect


def world_model(latent: Any, predictor: Any = None) -> LatentJEPA:
    return LatentJEPA(latent, Identity(), predictor or Shift(torch.randn(latent.size, D)))


def transitions(count: int = 7, steps: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(count, D), torch.randn(count, steps, A), torch.randn(count, steps, D)


def test_discrete_energy_is_the_minimum_over_all_codes() -> None:
    """F(x, y) = min_k |s_y - Pred(s_x, a, k)|^2 / D - strength log p(k | s, a)."""
    torch.manual_seed(0)
    latent = DiscreteLatent(4, D, A, strength=0.3)
    jepa = world_model(latent).eval()
    s, a, s_y = transitions()
    log_prior = latent.logits(s, a[:, 0]).log_softmax(-1)
    every = torch.stack([distance(s_y[:, 0], s + row) for row in jepa.predictor.effect], 1) - 0.3 * log_prior
    found = jepa.complete(s, a, s_y)
    torch.testing.assert_close(found.energy, every.amin(1))
    torch.testing.assert_close(jepa.energy(s, a, s_y), every.amin(1))
    assert torch.equal(found.z[:, 0].argmax(1), every.argmin(1))
    torch.testing.assert_close(found.terms["prior"][:, 0], -log_prior.gather(1, every.argmin(1, keepdim=True))[:, 0])


def test_in_training_a_code_is_not_passed_over_for_being_rare() -> None:
    """The code that explains best is chosen, whatever the prior says of it: argmin_k D_k."""
    latent = DiscreteLatent(4, D, A, strength=100.0)
    jepa = world_model(latent)
    s, a, s_y = transitions()
    every = torch.stack([distance(s_y[:, 0], s + row) for row in jepa.predictor.effect], 1)
    assert torch.equal(jepa.complete(s, a, s_y).z[:, 0].argmax(1), every.argmin(1))
    likeliest = latent.logits(s, a[:, 0]).argmax(1)
    assert torch.equal(jepa.eval().complete(s, a, s_y).z[:, 0].argmax(1), likeliest)


def test_relaxed_winner_takes_all() -> None:
    """loss = (1 - relaxation) min_k D_k + relaxation mean_k D_k, so that every code learns."""
    jepa = world_model(DiscreteLatent(4, D, A, relaxation=0.2))
    s, a, s_y = transitions()
    every = torch.stack([distance(s_y[:, 0], s + row) for row in jepa.predictor.effect], 1)
    loss = jepa.complete(s, a, s_y).loss[:, 0]
    torch.testing.assert_close(loss, 0.8 * every.amin(1) + 0.2 * every.mean(1))
    loss.sum().backward()
    assert (jepa.predictor.effect.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_z_is_inferred_and_not_learned(kind: str) -> None:
    """Weights get the gradient of E at the z that was found, which is a constant."""
    torch.manual_seed(0)
    jepa = world_model(KINDS[kind]())
    s, a, s_y = transitions()
    found = jepa.complete(s, a, s_y)
    assert not found.z.requires_grad
    sum(term.sum() for term in (found.loss, *found.terms.values())).backward()
    assert all(weight.grad is not None for weight in jepa.parameters())


@pytest.mark.parametrize("history", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_has_one_energy(kind: str, history: int) -> None:
    """F(x, y) is a function of x and y: of no luck, of no other pairs in the batch, and of no mode of autograd."""
    torch.manual_seed(0)
    latent = KINDS[kind]() if history == 1 else LONG[kind]()
    jepa = world_model(latent, TransformerPredictor(D, A + latent.size, history=history, width=16, heads=2)).eval()
    nn.init.normal_(jepa.predictor.change.weight)
    s, a, s_y = torch.randn(5, history, D), torch.randn(5, history + 1, A), torch.randn(5, 2, D)
    energy = jepa.energy(s, a, s_y)
    torch.testing.assert_close(jepa.energy(s, a, s_y), energy, rtol=0, atol=0)
    torch.testing.assert_close(jepa.energy(s[2:3], a[2:3], s_y[2:3]), energy[2:3])
    with torch.inference_mode():
        inside = jepa.energy(s + 0, a + 0, s_y + 0)
    torch.testing.assert_close(inside, energy)


@pytest.mark.parametrize("kind", KINDS)
def test_an_energy_is_that_of_its_z(kind: str) -> None:
    """F = D(s_y, Pred(s_x, a, z)) + R(z) at the z that is given back."""
    torch.manual_seed(0)
    latent = KINDS[kind]()
    jepa = world_model(latent).eval()
    s, a, s_y = transitions()
    found = jepa.complete(s, a, s_y)
    z = found.z[:, 0]
    regulariser = {
        "discrete": lambda: -0.1 * (latent.logits(s, a[:, 0]).log_softmax(-1) * z).sum(-1),
        "continuous": lambda: 0.1 * z.square().sum(-1),
        "sparse": lambda: 0.02 * z.abs().sum(-1),
        "noisy": lambda: (
            0.001 * (latent.surprise(z, s, a[:, 0]) - latent.surprise(latent.prior(s, a[:, 0])[0], s, a[:, 0]))
        ),
    }[kind]()
    torch.testing.assert_close(found.distance[:, 0], distance(s_y[:, 0], s + z @ jepa.predictor.effect))
    torch.testing.assert_close(found.regulariser[:, 0], regulariser, atol=1e-6, rtol=1e-4)


def test_a_guess_is_refined() -> None:
    """Amortised inference starts the descent, and no step of it makes the energy worse."""
    energies = []
    for refinement in (0, 3, 30):
        torch.manual_seed(0)
        jepa = world_model(NoisyLatent(2, D, A, strength=0.1, refinement=refinement)).eval()
        energies.append(jepa.energy(*transitions()))
    assert (energies[1] <= energies[0]).all()
    assert (energies[2] <= energies[1] + 1e-6).all()
    assert energies[2].mean() < 0.9 * energies[0].mean()


class TwoValleys(nn.Module):
    """s[t+1] = (z - 2)^2 ((z + 1)^2 + 0.1): exact at z = 2, but from 0 it is downhill to -1."""

    history, state_size, action_size = 1, D, A + 1

    def forward(self, s: Tensor, a: Tensor) -> Tensor:
        z = a[..., -1, A:]
        return ((z - 2).square() * ((z + 1).square() + 0.1)).expand(*z.shape[:-1], D)


def test_several_starts_find_what_one_misses() -> None:
    found = {
        starts: world_model(ContinuousLatent(1, D, A, starts=starts, asked=300, rate=0.02, spread=2.0), TwoValleys())
        .eval()
        .energy(torch.zeros(3, D), torch.zeros(3, 1, A), torch.zeros(3, 1, D))
        for starts in (1, 8)
    }
    assert found[1].min() > 0.5
    assert found[8].max() < 1e-2


def test_an_inference_that_runs_away_has_no_energy() -> None:
    """It is not passed off as one that was found."""
    latent = ContinuousLatent(1, D, A, rate=1e30)
    assert not torch.isfinite(world_model(latent).complete(*transitions()).distance).any()


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


def test_as_many_numbers_as_the_state_and_no_regulariser_collapse_the_energy() -> None:
    """Then any future has an energy of about zero (paper section 4.4, Fig. 12)."""
    torch.manual_seed(0)
    s, a, s_y = transitions(20)
    free = world_model(ContinuousLatent(D, D, A, steps=200), Shift(torch.eye(D)))
    bound = world_model(ContinuousLatent(1, D, A, steps=200), Shift(torch.eye(1, D)))
    assert free.energy(s, a, s_y).max() < 1e-3
    assert bound.energy(s, a, s_y).mean() > 0.5


@pytest.mark.parametrize("make", [SparseLatent, ContinuousLatent])
def test_training_takes_few_steps_and_an_energy_many(make: Any) -> None:
    class Counted(Shift):
        calls = 0

        def forward(self, s: Tensor, a: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(s, a)

    calls = []
    for training in (True, False):
        jepa = world_model(make(2, D, A, steps=3, asked=40), Counted(torch.randn(2, D))).train(training)
        jepa.energy(*transitions())
        calls.append(jepa.predictor.calls)
    assert calls[0] < 12 < 40 < calls[1]


def test_more_steps_of_inference_never_raise_an_energy() -> None:
    """Where the predictor is no linear function either, and the rate too large for it."""
    torch.manual_seed(0)
    predictor = ResidualPredictor(D, A + 5, 32)
    nn.init.normal_(predictor.change[-1].weight)
    before, given = torch.full((7,), torch.inf), transitions()
    for steps in (1, 5, 20, 80, 320):
        torch.manual_seed(1)
        energy = world_model(SparseLatent(5, D, A, asked=steps, rate=30.0), predictor).eval().energy(*given)
        assert (energy <= before).all()
        before = energy
    fine = world_model(SparseLatent(5, D, A, asked=4000, rate=0.1), predictor).eval().energy(*given)
    assert before.mean() < fine.mean() + 0.02


def test_sparse_codes_have_zeros() -> None:
    """FISTA reaches the minimum of |s_y - s - z|^2 / D + strength |z|_1: soft thresholding."""
    torch.manual_seed(0)
    latent = SparseLatent(D, D, A, strength=0.2, steps=100, rate=0.5)
    s, a, s_y = transitions(30)
    s_y = 0.5 * s_y + s[:, None]
    z = world_model(latent, Shift(torch.eye(D))).complete(s, a, s_y).z[:, 0]
    wanted = (s_y[:, 0] - s).sign() * ((s_y[:, 0] - s).abs() - 0.2 * D / 2).clamp_min(0)
    torch.testing.assert_close(z, wanted.clamp(-1, 1), atol=1e-3, rtol=0)
    assert (z == 0).any()


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


def test_a_history_is_explained_before_what_follows_is_imagined() -> None:
    """With memory, the z of what was seen are part of the predictor's input, each inferred from the next state."""
    torch.manual_seed(0)
    latent = DiscreteLatent(3, 3 * D, A)
    jepa = world_model(latent, TransformerPredictor(D, A + 3, history=3, width=16, heads=2))
    nn.init.normal_(jepa.predictor.change.weight)
    seen, actions = torch.randn(2, 3, D), torch.randn(2, 6, A)
    assert jepa.predict(seen, actions).shape == (2, 4, D)
    s_y = torch.randn(2, 4, D)
    found = jepa.complete(seen, actions, s_y)
    assert found.z.shape == (2, 4, 3)
    first = jepa.complete(seen[:, :1], actions[:, :1], seen[:, 1:2]).z[:, 0]
    assert torch.equal(jepa._controls(seen, actions[:, :2])[:, 0, A:], first)


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
