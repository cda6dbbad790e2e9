"""C(s) = sum_i u_i IC_i(s) + sum_j v_j TC_j(s): immutable terms, weights from outside, critics where a plan ends."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from lightning_jepa.cost.body import Hunger, Pain
from lightning_jepa.cost.cost import Cost
from lightning_jepa.cost.critic import Critic, CriticNetwork
from lightning_jepa.cost.effort import Effort
from lightning_jepa.cost.goal import GoalEnergy
from lightning_jepa.cost.intrinsic import IntrinsicCost
from lightning_jepa.cost.novelty import Boredom, Curiosity
from lightning_jepa.cost.spatial import SpatialFeatures
from lightning_jepa.types import Modulation

BODY = ("energy_level", "pain")
STATES = torch.rand(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
ACTIONS = torch.randn(2, 3, 4, 2, generator=torch.Generator().manual_seed(1))
GOAL = torch.rand(2, 6, generator=torch.Generator().manual_seed(2))
HERE = Modulation(GOAL)


def terms() -> dict[str, nn.Module]:
    return {"goal": GoalEnergy(width=0.5), "pain": Pain(BODY), "hunger": Hunger(BODY), "effort": Effort(2.0)}


def intrinsic() -> IntrinsicCost:
    return IntrinsicCost(terms())


class Constant(nn.Module):
    """A critic that expects as much for every state."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, states: Tensor, modulation: Modulation) -> Tensor:
        return torch.full(states.shape[:2], self.value)


def test_terms_say_what_their_equations_say() -> None:
    found = intrinsic()(STATES, ACTIONS, HERE)
    squares = (STATES - GOAL[:, None, None]).square().sum(-1)
    expected = [
        1 - torch.exp(-squares / (2 * 0.5**2)),
        STATES[..., -1],
        (1 - STATES[..., -2] / 0.5).clamp_min(0).square(),
        ACTIONS.square().sum(-1) / 4,
    ]
    torch.testing.assert_close(found, torch.stack(expected, -1))


def test_energies_that_are_felt_need_no_state() -> None:
    felt = IntrinsicCost({name: term for name, term in terms().items() if name != "goal"})
    torch.testing.assert_close(felt.felt(STATES[:, 0, :, -2:], ACTIONS[:, 0]), felt(STATES, ACTIONS, HERE)[:, 0])


def test_curiosity_falls_where_members_disagree_and_boredom_where_much_changes() -> None:
    members = [nn.Linear(6, 5) for _ in range(3)]
    views = torch.stack([member(STATES) for member in members])
    curious = Curiosity(members)(STATES, ACTIONS, HERE)
    torch.testing.assert_close(curious, -views.std(0, correction=0).mean(-1))
    bored = Boredom(nn.Identity())(STATES, ACTIONS, HERE)
    assert bored.shape == (2, 3, 4)
    torch.testing.assert_close(bored[..., 1:], torch.exp(-STATES.diff(dim=2).square().sum(-1) / 2))
    still = Boredom(nn.Identity())(STATES[:, :, :1].expand(-1, -1, 4, -1), ACTIONS, HERE)
    assert (still == 1).all()


def test_every_term_has_a_gradient_with_respect_to_states_or_actions() -> None:
    states, actions = STATES.clone().requires_grad_(), ACTIONS.clone().requires_grad_()
    for name, term in terms().items():
        reached = torch.autograd.grad(term(states, actions, HERE).sum(), actions if name == "effort" else states)
        assert reached[0].abs().sum() > 0, name


def test_nothing_in_the_intrinsic_cost_can_be_trained() -> None:
    metric = nn.Linear(6, 3)
    found = IntrinsicCost({"goal": GoalEnergy}, metric=metric)
    assert list(found.parameters()) == []
    before, energy = found.fingerprint, found(STATES, ACTIONS, HERE)
    torch.testing.assert_close(energy, GoalEnergy(metric)(STATES, ACTIONS, HERE)[..., None])
    nn.init.zeros_(metric.weight)  # training the metric on changes nothing here
    assert found.fingerprint == before
    torch.testing.assert_close(found(STATES, ACTIONS, HERE), energy)
    with pytest.raises(ValueError, match=r"immutable, but \['terms.goal.metric.weight'"):
        IntrinsicCost({"goal": GoalEnergy(metric)})
    with pytest.raises(ValueError, match="cost.terms.goal is measured in the space of a metric"):
        IntrinsicCost({"goal": GoalEnergy})
    with pytest.raises(ValueError, match="no terms"):
        IntrinsicCost({})


def test_the_fingerprint_tells_every_change() -> None:
    plain = intrinsic().fingerprint
    assert intrinsic().fingerprint == plain
    others = [
        {**terms(), "effort": Effort(3.0)},
        {**terms(), "hunger": Hunger(BODY, enough=0.4)},
        {name: terms()[name] for name in ("pain", "goal", "hunger", "effort")},
        {"goal": partial(GoalEnergy, width=0.5), **{name: terms()[name] for name in ("pain", "hunger", "effort")}},
    ]
    found = [IntrinsicCost(other, metric=nn.Identity()).fingerprint for other in others]
    assert len({plain, *found}) == 5


def test_a_term_without_its_channel_is_refused() -> None:
    for term in (Pain, Hunger):
        with pytest.raises(ValueError, match=r"needs the body channel '.*', this world has no body"):
            term(())


def test_the_total_is_the_weighted_and_discounted_sum() -> None:
    u = torch.tensor([[1.0, 2.0, 0.0, 0.5], [0.0, 0.0, 3.0, 1.0]])
    v = torch.tensor([[2.0], [0.0]])
    cost = Cost(intrinsic(), {"critic": Constant(7.0)}, discount=0.9)
    found = cost(STATES, ACTIONS, Modulation(GOAL, u, v))
    gamma = 0.9 ** torch.arange(4)
    expected = (intrinsic()(STATES, ACTIONS, HERE) * u[:, None, None]).sum(-1) * gamma
    expected[..., -1] += 0.9**4 * 7 * v
    torch.testing.assert_close(found, expected)
    one = Cost(intrinsic())(STATES, ACTIONS, HERE)
    torch.testing.assert_close(one, intrinsic()(STATES, ACTIONS, HERE).sum(-1))
    named = cost.terms(STATES[:, 0, 0], ACTIONS[:, 0, 0], Modulation(GOAL, u, v))
    assert list(named) == ["goal", "pain", "hunger", "effort", "critic"]
    assert named["critic"].tolist() == [7, 7]


@pytest.mark.parametrize(
    ("u", "v", "told"),
    [
        (torch.ones(2, 3), None, r"u have shape \(2, 3\)"),
        (torch.tensor([[1.0, -1, 1, 1]]).expand(2, 4), None, "at least -1"),
        (torch.full((2, 4), torch.nan), None, "finite"),
        (None, torch.ones(2, 2), r"v have shape \(2, 2\).*'critic'"),
        (None, -torch.ones(2, 1), "at least -1"),
    ],
)
def test_weights_that_do_not_fit_are_refused(u: Tensor | None, v: Tensor | None, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Cost(intrinsic(), {"critic": Constant(1.0)})(STATES, ACTIONS, Modulation(GOAL, u, v))


def critic(pessimism: float = 0.0) -> Critic:
    torch.manual_seed(0)
    members = [CriticNetwork(nn.Linear(6, 3), 3, terms=4, body_size=2, hidden=8) for _ in range(3)]
    return Critic(members, terms=4, discount=0.9, pessimism=pessimism)


def test_twice_the_weights_make_twice_the_expected_cost() -> None:
    u = torch.rand(2, 4)
    once, twice = (critic()(STATES[:, :, 0], Modulation(GOAL, u * by)) for by in (1, 2))
    torch.testing.assert_close(twice, 2 * once)
    views = critic().judge(STATES[:, :, 0], GOAL[:, None].expand(2, 3, 6), u[:, None].expand(2, 3, 4))
    assert views.shape == (3, 2, 3)
    careful = critic(pessimism=2.0)(STATES[:, :, 0], Modulation(GOAL, u))
    torch.testing.assert_close(careful, once + 2 * views.std(0, correction=0))


def test_features_of_a_map_leave_out_the_body_and_know_their_size() -> None:
    features = SpatialFeatures((3, 4, 5), size=7, channels=2, hidden=8, body_size=2)
    states = torch.randn(2, 6, 3 * 4 * 5 + 2)
    other = torch.cat([states[..., :-2], states[..., -2:] + 1], -1)
    assert features(states).shape == (2, 6, 7)
    torch.testing.assert_close(features(other), features(states))
    with pytest.raises(ValueError, match="built for a map of .3, 4, 5. and a body of 2"):
        features(states[..., :-1])
    with pytest.raises(ValueError, match="give channels, height and width"):
        SpatialFeatures((60,), size=7)


def test_a_critic_belongs_to_one_intrinsic_cost() -> None:
    judge = critic()
    judge.check(intrinsic().fingerprint)  # not trained for any yet
    judge.sign(intrinsic().fingerprint)
    judge.check(intrinsic().fingerprint)
    restored = critic()
    restored.load_state_dict(judge.state_dict())
    with pytest.raises(ValueError, match="trained for the intrinsic cost"):
        restored.check(IntrinsicCost({"effort": Effort(1.0)}).fingerprint)
    Cost(intrinsic(), {"learned": restored})
    with pytest.raises(ValueError, match="the critic was trained for the intrinsic cost"):
        Cost(IntrinsicCost({"effort": Effort(1.0)}), {"learned": restored})


@pytest.mark.parametrize("make", [lambda: Effort(0), lambda: GoalEnergy(width=0), lambda: Hunger(BODY, enough=0)])
def test_numbers_out_of_range_are_refused(make: object) -> None:
    with pytest.raises(ValueError, match="above 0"):
        make()  # type: ignore[operator]
