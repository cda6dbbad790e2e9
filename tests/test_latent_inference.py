"""z is inferred: F(x, y) = min over z of D(s_y, Pred(s_x, a, z)) + R(z) (paper section 4.2)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from latents import KINDS, LONG, A, D, Shift, transitions, world_model
from torch import Tensor, nn

from lightning_jepa.world_model.latent.continuous import ContinuousLatent
from lightning_jepa.world_model.latent.discrete import DiscreteLatent
from lightning_jepa.world_model.latent.inference import distance
from lightning_jepa.world_model.latent.noisy import NoisyLatent
from lightning_jepa.world_model.latent.sparse import SparseLatent
from lightning_jepa.world_model.residual import ResidualPredictor
from lightning_jepa.world_model.transformer import TransformerPredictor


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
