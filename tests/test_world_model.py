"""The world model s[t+1] = Pred(s[t], a[t]): predictors, free-running prediction, rollouts, the prediction energy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor, nn

from lightning_jepa.perception.conv import ConvEncoder
from lightning_jepa.world_model.convolutional import ConvPredictor
from lightning_jepa.world_model.jepa import JEPA
from lightning_jepa.world_model.recurrent import RecurrentPredictor
from lightning_jepa.world_model.residual import ResidualPredictor
from lightning_jepa.world_model.transformer import TransformerPredictor

CONF = Path(__file__).parents[1] / "conf"
PREDICTORS: dict[str, Callable[[], nn.Module]] = {
    "recurrent": lambda: RecurrentPredictor(18, 2),
    "residual": lambda: ResidualPredictor(18, 2, hidden=16, depth=2),
    "residual_normalised": lambda: ResidualPredictor(18, 2, hidden=16, depth=1, normalise=True),
    "convolutional": lambda: ConvPredictor((2, 3, 3), 2, hidden=8, depth=2),
    "convolutional_1x1": lambda: ConvPredictor((2, 3, 3), 2, hidden=8, depth=3, mixing=1),
    "transformer": lambda: TransformerPredictor(18, 2, history=3, width=16, depth=2, heads=2),
}


def stir(module: nn.Module) -> nn.Module:
    """Random weights everywhere, also where a module starts at zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module


class Identity(nn.Module):
    """Perception of pictures that are states."""

    def __init__(self, state_size: int) -> None:
        super().__init__()
        self.state_size = state_size

    def forward(self, observations: Tensor) -> Tensor:
        return observations.flatten(2).float()


class Adds(nn.Module):
    """True dynamics of the simplest world: s + a."""

    history, state_size, action_size = 1, 2, 2

    def forward(self, s: Tensor, a: Tensor) -> Tensor:
        return s[..., -1, :] + a[..., -1, :]


@pytest.fixture(params=PREDICTORS)
def predictor(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return stir(PREDICTORS[request.param]())


@pytest.fixture
def jepa(predictor: nn.Module) -> JEPA:
    return JEPA(Identity(18), predictor, action_scale=2.0, rollout_block=4)


def test_one_state_follows_the_last(predictor: nn.Module) -> None:
    for leading in ((), (2,), (2, 3)):
        s, a = torch.randn(*leading, 3, 18), torch.randn(*leading, 3, 2)
        assert predictor(s, a).shape == (*leading, 18)


def test_many_actions_in_the_same_state(predictor: nn.Module) -> None:
    """Pred(s, a_k) for all k at once is Pred(s, a_k) for each: axes before time are broadcast."""
    s, a = torch.randn(4, 2, 18), torch.randn(4, 5, 2, 2)
    each = torch.stack([predictor(s, a[:, k]) for k in range(5)], 1)
    torch.testing.assert_close(predictor(s[:, None], a), each, atol=1e-5, rtol=1e-4)


def test_what_follows_depends_on_the_last_action_and_on_what_was_before_if_there_is_memory(
    predictor: nn.Module,
) -> None:
    s, a = torch.randn(2, 3, 18, requires_grad=True), torch.randn(2, 3, 2, requires_grad=True)
    grad_s, grad_a = torch.autograd.grad((predictor(s, a) * torch.randn(18)).sum(), (s, a))
    assert (grad_a[:, -1].abs().sum(-1) > 0).all()
    for before in (grad_s[:, 0], grad_a[:, 0]):
        assert bool(before.abs().max() > 0) == (predictor.history > 1)


def test_every_weight_is_trained(predictor: nn.Module) -> None:
    s, a = torch.randn(2, 3, 18), torch.randn(2, 3, 2)
    (predictor(s, a) * torch.randn(18)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in predictor.parameters())


@pytest.mark.parametrize("name", ["residual", "convolutional", "convolutional_1x1", "transformer"])
def test_nothing_changes_before_training(name: str) -> None:
    """s + f(s, a) with f = 0."""
    s = torch.randn(2, 3, 18)
    assert torch.equal(PREDICTORS[name]()(s, torch.randn(2, 3, 2)), s[:, -1])


@pytest.mark.parametrize("mixing", [1, 3])
def test_convolutional_physics_is_the_same_everywhere(mixing: int) -> None:
    """Pred(shift(s), a) = shift(Pred(s, a)) away from the border: zero padding reaches depth + 1 places far."""
    predictor = stir(ConvPredictor((3, 15, 15), 2, hidden=8, depth=2, mixing=mixing))
    s, a = torch.randn(4, 1, 3, 15, 15), torch.randn(4, 1, 2)
    moved = s.roll((1, 2), (-2, -1))
    after = predictor(s.flatten(2), a).view_as(s[:, 0]).roll((1, 2), (-2, -1))
    after_moved = predictor(moved.flatten(2), a).view_as(s[:, 0])
    inner = (..., slice(5, 10), slice(5, 10))
    torch.testing.assert_close(after[inner], after_moved[inner], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(after, after_moved)


def test_convolutional_physics_is_local() -> None:
    predictor = stir(ConvPredictor((3, 15, 15), 2, hidden=8, depth=2))
    s, a = torch.randn(1, 1, 3, 15, 15), torch.randn(1, 1, 2)
    other = s.clone()
    other[..., 0, 0] += 1
    changed = (predictor(s.flatten(2), a) != predictor(other.flatten(2), a)).view(3, 15, 15).any(0)
    assert changed[:4, :4].any()
    assert not changed[4:].any()
    assert not changed[:, 4:].any()


def test_residual_sum_keeps_its_precision_under_autocast() -> None:
    """The network may run in bfloat16; s + f(s, a) is summed in float32, or small steps would be lost."""
    predictor = ConvPredictor((2, 3, 3), 2, hidden=8)
    s = torch.full((1, 1, 18), 1.0 + 2**-20)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(predictor(s, torch.randn(1, 1, 2)), s[:, 0])


def test_prediction_is_repeated_single_steps(jepa: JEPA) -> None:
    """s~[k+1] = Pred(s~[k], a[k] / scale), for a predictor with memory over the last `history` states."""
    s, actions = torch.randn(3, 18), torch.randn(3, 5, 2)
    states = [s]
    for t in range(5):
        first = max(0, t + 1 - jepa.predictor.history)
        context = torch.stack(states[first : t + 1], 1)
        states.append(jepa.predictor(context, actions[:, first : t + 1] / 2.0))
    torch.testing.assert_close(jepa.predict(s, actions), torch.stack(states[1:], 1), atol=1e-5, rtol=1e-4)


def test_prediction_goes_on_from_a_history(jepa: JEPA) -> None:
    """Given the states it predicted itself as a history, it predicts the same future."""
    s, actions = torch.randn(3, 18), torch.randn(3, 6, 2)
    whole = jepa.predict(s, actions)
    history = torch.cat([s[:, None], whole[:, :2]], 1)
    torch.testing.assert_close(jepa.predict(history, actions), whole[:, 2:], atol=1e-5, rtol=1e-4)


@settings(deadline=None, max_examples=15)
@given(
    episodes=st.integers(1, 3), candidates=st.integers(1, 4), horizon=st.integers(1, 3), block=st.integers(1, 7),
    name=st.sampled_from(["residual", "transformer"]),
)  # fmt: skip
def test_each_candidate_is_imagined_alone(episodes: int, candidates: int, horizon: int, block: int, name: str) -> None:
    torch.manual_seed(0)
    jepa = JEPA(Identity(18), stir(PREDICTORS[name]()), rollout_block=block)
    s, actions = torch.randn(episodes, 18), torch.randn(episodes, candidates, horizon, 2)
    together = jepa.rollout(s, actions)
    assert together.shape == (episodes, candidates, horizon, 18)
    for candidate in range(candidates):
        alone = jepa.predict(s, actions[:, candidate])
        torch.testing.assert_close(together[:, candidate], alone, atol=1e-5, rtol=1e-4)


def test_gradients_of_a_plan_reach_actions_only_of_the_past(jepa: JEPA) -> None:
    """With frozen weights: d s~[k] / d a[j] is zero for j > k and not for j <= k."""
    jepa.requires_grad_(False)
    actions = torch.randn(2, 3, 4, 2, requires_grad=True)
    states = jepa.rollout(torch.randn(2, 18), actions)
    (states[:, :, 1] * torch.randn(18)).sum().backward()
    assert (actions.grad[:, :, :2].abs().sum(-1) > 0).all()
    assert actions.grad[:, :, 2:].abs().max() == 0
    assert all(p.grad is None for p in jepa.parameters())


def predicted(jepa: JEPA, states: Tensor, actions: Tensor, horizon: int, every: int = 1) -> Tensor:
    """The prediction energy [B, N, H]."""
    return jepa.predictions(states, actions, states, horizon, every)[1]["prediction"]


def test_prediction_energy_is_the_squared_distance_to_what_was_encoded() -> None:
    """E[t, k] = |s[t+k] - s~[t+k]|^2 / D, zero for true dynamics."""
    actions = torch.randn(3, 9, 2)
    true = torch.cat([torch.zeros(3, 1, 2), actions.cumsum(1)], 1)
    jepa = JEPA(Identity(2), Adds())
    for every, starts in ((1, 6), (2, 3), (5, 2)):
        energy = predicted(jepa, true, actions, 4, every)
        assert energy.shape == (3, starts, 4)
        torch.testing.assert_close(energy, torch.zeros_like(energy), atol=1e-10, rtol=0)
    still = predicted(jepa, true, torch.zeros_like(actions), 4, 2)
    expected = torch.stack([(true[:, t + 1 : t + 5] - true[:, t : t + 1]).square().mean(-1) for t in (0, 2, 4)], 1)
    torch.testing.assert_close(still, expected)


def test_energy_trains_both_branches(predictor: nn.Module) -> None:
    """No stop-gradient: dE/ds is not zero for the states predicted from, nor for those compared with."""
    jepa = JEPA(Identity(18), predictor)
    states = torch.randn(2, 6, 18, requires_grad=True)
    energy = predicted(jepa, states, torch.randn(2, 5, 2), 3)
    grad = torch.autograd.grad(energy[:, 0, 2].sum(), states)[0].abs().sum((0, 2))
    assert grad[0] > 0
    assert grad[3] > 0
    assert grad[[1, 2, 4, 5]].max() == 0


def test_prediction_energy_reaches_encoder_and_predictor() -> None:
    encoder = ConvEncoder(widths=(4, 4), channels=2)
    jepa = JEPA(encoder, stir(ConvPredictor(encoder.state_shape, 2, hidden=4)))
    states = jepa.encode(torch.randint(0, 256, (2, 5, 2, 33, 33), dtype=torch.uint8))
    predicted(jepa, states, torch.randn(2, 4, 2), 2).mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in jepa.parameters())


def test_training_recovers_the_dynamics() -> None:
    """A map whose blob is pushed by the action: s[t+1] = s[t] moved one place to the side that a points to."""
    torch.manual_seed(0)
    jepa = JEPA(Identity(49), ConvPredictor((1, 7, 7), 1, hidden=8, depth=1))
    optimizer = torch.optim.Adam(jepa.parameters(), 1e-2)

    def batch() -> tuple[Tensor, Tensor]:
        actions = torch.randint(0, 2, (64, 2, 1)) * 2 - 1
        place = torch.randint(2, 5, (64, 1)) + torch.cat([torch.zeros(64, 1).long(), actions[..., 0].cumsum(1)], 1)
        row = torch.randint(0, 7, (64, 1)).expand(-1, 3)
        return nn.functional.one_hot(row * 7 + place, 49).float(), actions.float()

    for _ in range(300):
        optimizer.zero_grad()
        predicted(jepa, *batch(), 2).mean().backward()
        optimizer.step()
    states, actions = batch()
    error = predicted(jepa, states, actions, 2).mean()
    copy_last = (states[:, 2] - states[:, 0]).square().mean()
    assert error < 0.05 * copy_last


@pytest.mark.parametrize(
    ("call", "shapes"),
    [
        ("predict", [(3, 17), (3, 4, 2)]),
        ("predict", [(3, 18), (3, 4, 3)]),
        ("predict", [(3, 18), (2, 4, 2)]),
        ("predict", [(3, 18), (3, 2)]),
        ("predict", [(3, 3, 18), (3, 2, 2)]),
        ("rollout", [(3, 18), (3, 4, 2)]),
        ("rollout", [(3, 1, 18), (3, 4, 5, 2)]),
        ("predictions", [(3, 6, 18), (3, 6, 2), (3, 6, 18)]),
        ("predictions", [(3, 3, 18), (3, 2, 2), (3, 3, 18)]),
    ],
)
def test_shapes_that_do_not_fit_are_told(call: str, shapes: list[tuple[int, ...]]) -> None:
    jepa = JEPA(Identity(18), PREDICTORS["residual"]())
    extra = {"horizon": 3} if call == "predictions" else {}
    with pytest.raises(ValueError, match=r"expected|needs|give"):
        getattr(jepa, call)(*(torch.randn(shape) for shape in shapes), **extra)


def test_sizes_that_do_not_fit_are_told() -> None:
    with pytest.raises(ValueError, match="perception gives states of 20"):
        JEPA(Identity(20), RecurrentPredictor(18, 2))
    with pytest.raises(ValueError, match="action_scale"):
        JEPA(Identity(18), RecurrentPredictor(18, 2), action_scale=0.0)
    with pytest.raises(ValueError, match="map"):
        ConvPredictor([18], 2)
    with pytest.raises(ValueError, match="mixing"):
        ConvPredictor((2, 3, 3), 2, mixing=5)
    with pytest.raises(ValueError, match="multiple"):
        TransformerPredictor(18, 2, width=10, heads=4)


def test_a_history_is_never_longer_than_it_was_trained_for() -> None:
    predictor = PREDICTORS["transformer"]()
    with pytest.raises(ValueError, match="history=3"):
        predictor(torch.randn(1, 4, 18), torch.randn(1, 4, 2))
    with pytest.raises(ValueError, match="at most 2"):
        predicted(JEPA(Identity(18), predictor), torch.randn(1, 5, 18), torch.randn(1, 4, 2), 2)


@pytest.mark.parametrize(
    ("name", "perception"),
    [("convolutional", "conv"), ("recurrent", "vector"), ("residual", "vit"), ("transformer", "impala")],
)
def test_configuration_builds(name: str, perception: str) -> None:
    config = OmegaConf.create(
        {
            "perception": OmegaConf.load(CONF / "perception" / f"{perception}.yaml"),
            "world_model": OmegaConf.load(CONF / "world_model" / f"{name}.yaml"),
        }
    )
    jepa = JEPA(instantiate(config.perception), instantiate(config.world_model))
    assert jepa.rollout(torch.randn(1, jepa.state_size), torch.randn(1, 2, 3, 2)).shape == (1, 2, 3, jepa.state_size)
