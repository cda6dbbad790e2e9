"""Criteria: closed forms of each term, what they do to collapsed states, and what their gradients reach."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_jepa.perception.expander import Expander
from lightning_jepa.types import Encoded
from lightning_jepa.world_model.criteria.inverse_dynamics import InverseDynamics, SpatialInverse, VectorInverse
from lightning_jepa.world_model.criteria.smoothness import TemporalSmoothness
from lightning_jepa.world_model.criteria.statistics import covariance
from lightning_jepa.world_model.criteria.vicreg import VarianceCovariance

CONF = Path(__file__).parents[1] / "conf"


def of(states: Tensor, actions: Tensor | None = None) -> Encoded:
    """A batch of these states [B, T, D] alone, nothing of it predicted."""
    nothing = torch.zeros(0)
    return Encoded(states, nothing if actions is None else actions, nothing, nothing, nothing)


def with_covariance(samples: int, matrix: Tensor) -> Tensor:
    """Samples [N, D] whose covariance is exactly the given one."""
    x = torch.randn(samples, len(matrix), dtype=torch.float64)
    x = x - x.mean(0)
    whitened = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (samples - 1))).T
    return whitened @ torch.linalg.cholesky(matrix.double()).T


@settings(deadline=None, max_examples=20)
@given(groups=st.integers(1, 3), samples=st.integers(2, 20), features=st.integers(1, 5), shift=st.floats(-1e3, 1e3))
def test_covariance_is_that_of_each_group(groups: int, samples: int, features: int, shift: float) -> None:
    x = torch.randn(groups, samples, features, dtype=torch.float64) + shift
    expected = torch.stack([torch.cov(group.T).view(features, features) for group in x])
    torch.testing.assert_close(covariance(x), expected)


def test_statistics_are_not_computed_in_half_precision() -> None:
    x = torch.randn(1, 200, 3) + 100
    expected = torch.cov(x[0].T)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(covariance(x)[0], expected, atol=1e-3, rtol=1e-3)
        assert covariance(x.bfloat16()).dtype == torch.float32


def test_terms_of_a_known_covariance() -> None:
    """variance = mean relu(margin - std), covariance = sum of squares off the diagonal / (D (D - 1))."""
    matrix = torch.tensor([[4.0, 0.5, 0.0], [0.5, 0.25, 0.02], [0.0, 0.02, 0.04]])
    states = with_covariance(60, matrix).view(6, 10, 3)
    terms = VarianceCovariance(eps=0.0)(of(states))
    assert terms["variance"].item() == pytest.approx((0 + 0.5 + 0.8) / 3)
    assert terms["covariance"].item() == pytest.approx(2 * (0.5**2 + 0.02**2) / 6)


def test_white_states_have_no_penalty() -> None:
    states = with_covariance(60, torch.eye(5)).view(6, 10, 5)
    terms = VarianceCovariance()(of(states))
    assert terms["variance"].item() == 0
    assert terms["covariance"].item() == pytest.approx(0, abs=1e-20)


def test_collapsed_states_have_the_largest_variance_penalty() -> None:
    """All states alike: variance = margin - sqrt(eps); no other states have more."""
    criterion = VarianceCovariance(margin=2.0)
    collapsed = criterion(of(torch.randn(8).expand(5, 4, 8)))["variance"]
    assert collapsed.item() == pytest.approx(2.0 - 0.01)
    assert criterion(of(0.01 * torch.randn(5, 4, 8)))["variance"] < collapsed


def test_one_feature_has_no_covariance() -> None:
    assert VarianceCovariance()(of(torch.randn(4, 3, 1)))["covariance"] == 0


@pytest.mark.parametrize(
    ("over", "collapsed"),
    [("batch_time", {"all"}), ("batch", {"all", "same in each episode"}), ("time", {"all", "same at each time"})],
)
def test_samples_of_each_axis(over: str, collapsed: set[str]) -> None:
    """Statistics over an axis see the collapse along this axis, and only that."""
    states = {
        "all": torch.zeros(20, 30, 4),
        "same in each episode": torch.randn(1, 30, 4).expand(20, -1, -1),
        "same at each time": torch.randn(20, 1, 4).expand(-1, 30, -1),
    }
    criterion = VarianceCovariance(over=over, margin=0.5)
    for name, s in states.items():
        assert (criterion(of(s))["variance"] > 0.45) == (name in collapsed), name


@pytest.mark.parametrize("over", ["batch_time", "batch", "time"])
def test_locations_count_as_samples(over: str) -> None:
    """A map's terms are those of vectors of its channels, one for each place."""
    maps = torch.randn(3, 4, 5, 2, 2)  # [B, T, c, h, w]
    places = maps.flatten(3).transpose(2, 3)  # [B, T, h w, c]
    as_vectors = {
        "batch_time": places.flatten(0, 2)[None],
        "batch": places.transpose(0, 1).flatten(1, 2).transpose(0, 1),
        "time": places.flatten(1, 2),
    }[over]
    found = VarianceCovariance(over=over, state_shape=[5, 2, 2])(of(maps.flatten(2)))
    expected = VarianceCovariance(over=over)(of(as_vectors))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_what_stands_still_at_every_place_pleases_no_criterion_over_places() -> None:
    """A picture of the places themselves varies over all samples; over places its variance is 0."""
    still = torch.randn(5, 4).expand(6, 8, 5, 4)  # [B, T, c, h w], each place with features of its own
    moving = torch.randn(6, 8, 5, 4)
    found = {over: VarianceCovariance(over=over, state_shape=[5, 2, 2]) for over in ("batch_time", "place")}
    assert found["batch_time"](of(still.flatten(2)))["variance"] < 0.6
    assert found["place"](of(still.flatten(2)))["variance"] > 0.98
    apart = moving + 10 * still
    for name, term in found["batch_time"](of((moving - moving.mean((0, 1))).flatten(2))).items():
        torch.testing.assert_close(found["place"](of(apart.flatten(2)))[name], term, rtol=1e-3, atol=1e-5)


def test_expander_is_what_the_criterion_acts_on() -> None:
    expander = Expander(6, 12)
    states = torch.randn(4, 5, 6, requires_grad=True)
    terms = VarianceCovariance(expander=expander, prefix="expanded_")(of(states))
    expected = VarianceCovariance()(of(expander(states)))
    assert set(terms) == {"expanded_variance", "expanded_covariance"}
    torch.testing.assert_close(terms["expanded_covariance"], expected["covariance"])
    sum(terms.values()).backward()
    assert states.grad.abs().sum() > 0
    assert all(p.grad is not None for p in expander.parameters())


def test_descending_the_terms_whitens() -> None:
    """States all but collapsed to a line become decorrelated, with deviations of at least about the margin."""
    torch.manual_seed(0)
    states = nn.Parameter(torch.randn(16, 8, 1) * torch.ones(4) + 0.01 * torch.randn(16, 8, 4))
    optimizer = torch.optim.Adam([states], 0.05)
    for _ in range(200):
        optimizer.zero_grad()
        sum(VarianceCovariance()(of(states)).values()).backward()
        optimizer.step()
    cov = covariance(states.detach().flatten(0, 1)[None])[0]
    assert cov.diagonal().min() > 0.9
    assert (cov - cov.diag().diag()).abs().max() < 0.1


def test_vicreg_refuses_what_it_can_not_use() -> None:
    with pytest.raises(ValueError, match="batch_time"):
        VarianceCovariance(over="space")
    with pytest.raises(ValueError, match="map"):
        VarianceCovariance(state_shape=[4])
    with pytest.raises(ValueError, match="state_shape"):
        VarianceCovariance(over="place")
    with pytest.raises(ValueError, match="over='place'.* at least 2"):
        VarianceCovariance(over="place", state_shape=[4, 3, 3])(of(torch.randn(1, 1, 36)))
    for over, batch, times in (("batch", 1, 5), ("time", 5, 1), ("batch_time", 1, 1)):  # nine places are no samples
        with pytest.raises(ValueError, match=rf"over='{over}'.* takes statistics over 1 sample"):
            VarianceCovariance(over=over, state_shape=[4, 3, 3])(of(torch.randn(batch, times, 36)))
    with pytest.raises(ValueError, match="no maps"):
        VarianceCovariance(state_shape=[4, 3, 3])(of(torch.randn(2, 2, 35)))
    with pytest.raises(ValueError, match="at least 2"):
        VarianceCovariance(over="batch")(of(torch.randn(1, 5, 4)))


def test_smoothness_is_the_mean_squared_step() -> None:
    """mean |s[t+1] - s[t]|^2 / D."""
    states = torch.arange(5.0)[None, :, None] * torch.tensor([1.0, 3.0])
    assert TemporalSmoothness()(of(states))["smoothness"].item() == pytest.approx((1 + 9) / 2)
    with pytest.raises(ValueError, match="at least 2"):
        TemporalSmoothness()(of(torch.randn(3, 1, 2)))


@pytest.mark.parametrize("head", [VectorInverse(18, 2, hidden=8), SpatialInverse((2, 3, 3), 2, hidden=8)])
def test_inverse_dynamics_asks_for_actions_in_states(head: nn.Module) -> None:
    """mean |a[t] - f(s[t], s[t+1])|^2 / A; its gradients reach the states, all of them, and the head."""
    states, actions = torch.randn(3, 5, 18, requires_grad=True), torch.randn(3, 4, 2)
    term = InverseDynamics(head)(of(states, actions))["inverse_dynamics"]
    expected = [(head(states[:, t], states[:, t + 1]) - actions[:, t]).square().mean() for t in range(4)]
    torch.testing.assert_close(term, torch.stack(expected).mean())
    term.backward()
    assert (states.grad.abs().sum((0, 2)) > 0).all()
    assert all(p.grad is not None for p in head.parameters())
    for wrong in (torch.randn(3, 5, 2), torch.randn(3, 4, 3)):
        with pytest.raises(ValueError, match="expected"):
            InverseDynamics(head)(of(states, wrong))


def test_spatial_head_reads_motion_the_same_everywhere() -> None:
    """f(shift(s), shift(s')) = f(s, s') while what moves stays away from the border."""
    torch.manual_seed(0)
    head = SpatialInverse((2, 11, 11), 2, hidden=8)
    before, after = torch.zeros(1, 2, 11, 11), torch.zeros(1, 2, 11, 11)
    before[..., 4:6, 4:6], after[..., 4:6, 5:7] = torch.randn(2, 1, 2, 2, 2)
    here = head(before.flatten(1), after.flatten(1))
    there = head(before.roll((1, -1), (2, 3)).flatten(1), after.roll((1, -1), (2, 3)).flatten(1))
    torch.testing.assert_close(here, there)
    with pytest.raises(ValueError, match="map"):
        SpatialInverse([18], 2)


@pytest.mark.parametrize("head", [VectorInverse(49, 1, hidden=32), SpatialInverse((1, 7, 7), 1, hidden=8)])
def test_inverse_dynamics_recovers_actions(head: nn.Module) -> None:
    torch.manual_seed(0)
    criterion = InverseDynamics(head)
    optimizer = torch.optim.Adam(criterion.parameters(), 1e-2)
    for _ in range(150):
        actions = torch.randint(0, 2, (64, 1, 1)) * 2 - 1
        place = torch.randint(1, 6, (64, 1)) + torch.cat([torch.zeros(64, 1).long(), actions[..., 0]], 1)
        states = nn.functional.one_hot(place + 7 * torch.randint(0, 7, (64, 1)), 49).float()
        loss = criterion(of(states, actions.float()))["inverse_dynamics"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


VECTORS = ["vicreg", "smoothness", "inverse_dynamics"]
EXPANDED = ["vicreg", "vicreg_expander", "smoothness"]
MAPS = ["vicreg_spatial", "smoothness", "inverse_dynamics_spatial"]


@pytest.mark.parametrize(("perception", "names"), [("vector", VECTORS), ("vit", EXPANDED), ("conv", MAPS)])
def test_configurations_compose_to_a_set_of_criteria(tmp_path: Path, perception: str, names: list[str]) -> None:
    """`criterion=[a,b]` chooses any set; each has its own place, and no two terms the same name."""
    (tmp_path / "config.yaml").write_text(
        f"hydra:\n  searchpath: [file://{CONF}]\n"
        f"defaults:\n  - perception: {perception}\n  - criterion: {names}\n  - _self_\n"
    )
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        config = compose("config")
    criteria = [instantiate(node) for node in config.criterion.values()]
    size = instantiate(config.perception).state_size
    states, actions = torch.randn(4, 3, size), torch.randn(4, 2, 2)
    terms = [name for criterion in criteria for name in criterion(of(states, actions))]
    assert len(criteria) == len(names)
    assert len(set(terms)) == len(terms)
    assert {"variance", "covariance", "smoothness"} <= set(terms)
