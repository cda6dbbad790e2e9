"""build: only trusted packages, nothing before everything was checked, and errors that name what to mend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from lightning_jepa.build import build, checked

LINEAR = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}


def test_builds_nested_nodes_and_resolves_interpolations() -> None:
    cfg = OmegaConf.create(
        {"size": 2, "net": {"_target_": "tiny.Forgetful", "part": {**LINEAR, "in_features": "${size}"}}}
    )
    net = build(cfg.net, trusted=("tiny.", "torch.nn."))
    assert net.part.weight.shape == (3, 2)


def test_lists_and_mappings_arrive_as_plain_python() -> None:
    cfg = OmegaConf.create({"net": {"_target_": "tiny.Forgetful", "part": [1, {"a": 2}]}})
    part = build(cfg.net, trusted=("tiny.",)).part
    assert type(part) is list
    assert type(part[1]) is dict


def test_built_objects_join_without_a_copy() -> None:
    part = nn.Linear(2, 2)
    assert build({"_target_": "tiny.Forgetful"}, trusted=("tiny.",), part=part).part is part


def test_a_partial_waits_for_its_call() -> None:
    make = build({"_target_": "tiny.Forgetful", "part": {"_target_": "torch.nn.Tanh"}}, trusted=("tiny.", "torch.nn."))
    assert isinstance(make.part, nn.Tanh)
    waiting = build({**LINEAR, "_partial_": True}, bias=False)
    assert waiting().bias is None
    optimizer = build({"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.5})
    assert optimizer([torch.zeros(1, requires_grad=True)]).param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize(
    "target",
    [
        "os.system",  # another package
        "tiny.TinyExam",  # not trusted unless asked
        "torch.load",  # torch, but not its modules
        "torch.hub.load",
        "torchmetrics_evil.Thing",  # a prefix is a package, not letters
        "lightning_jepa.paths.os.system",  # another package by the back door
        "lightning_jepa.build.hydra.utils.instantiate",
        "torch.nn.Module.load_state_dict",  # a method
        "lightning.pytorch.LightningModule.load_from_checkpoint",
        "lightning_jepa.paths.CONF",  # a value
        "lightning_jepa.no_such_module.Thing",
        "lightning_jepa.types.NoSuchClass",
        3,
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_what_is_not_trusted_is_named(target: Any, nested: bool) -> None:
    node: dict[str, Any] = {"_target_": target}
    if nested:
        node = {"_target_": "torch.nn.Sequential", "parts": [{"deeper": node}]}
    with pytest.raises(ValueError, match=r"_target_|torch.nn.Sequential") as caught:
        build(node)
    assert nested or repr(target) in str(caught.value)


def test_nothing_is_built_before_all_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    monkeypatch.setattr("tiny.TinyExam.__init__", lambda self, experiment: built.append(self))
    node = {
        "_target_": "tiny.Forgetful",
        "part": {"_target_": "tiny.TinyExam", "experiment": "x"},
        "factor": {"_target_": "os.getcwd"},
    }
    with pytest.raises(ValueError, match="'os.getcwd' may not be built; trusted are tiny"):
        build(node, trusted=("tiny.",))
    assert built == []


@pytest.mark.parametrize("node", [None, {}, {"in_features": 1}, 3, "torch.nn.Linear"])
def test_a_node_needs_a_target(node: Any) -> None:
    with pytest.raises(ValueError, match="expected a mapping with the key _target_"):
        build(node)


@pytest.mark.parametrize("change", [{"bias_": True}, {"in_features": None, "out_features": None}])
def test_wrong_keys_name_the_target_and_what_it_takes(change: dict[str, Any]) -> None:
    node = {key: value for key, value in {**LINEAR, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=r"torch\.nn\.Linear: .*it takes in_features, out_features, bias"):
        build(node)


@pytest.mark.parametrize(
    ("target", "given", "expected"),
    [
        ("data_pipelines.datamodule.EpisodeData", {"batch_size": "many"}, "batch_size='many', expected int"),
        ("data_pipelines.datamodule.EpisodeData", {"batch_size": 1.5}, "batch_size=1.5, expected int"),
        ("data_pipelines.datamodule.EpisodeData", {"batch_size": True}, "batch_size=True, expected int"),
        ("data_pipelines.datamodule.EpisodeData", {"levels": 3}, r"levels=3, expected Sequence\[Mapping\[str, int\]\]"),
        ("lightning_jepa.cost.goal.GoalEnergy", {"metric": "l2"}, r"metric='l2', expected torch\.nn\..*Module \| None"),
        ("lightning.Trainer", {"max_epochs": "abc"}, r"max_epochs='abc', expected Optional\[int\]"),
        ("lightning.Trainer", {"precision": 12}, "precision=12, expected Union.*bf16-mixed"),
    ],
)
def test_wrong_types_name_what_was_expected(target: str, given: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=f"{target}: {expected}"):
        build({"_target_": target, "_partial_": True, **given})


@pytest.mark.parametrize(
    ("target", "given"),
    [
        ("data_pipelines.datamodule.EpisodeData", {"observation_shape": None, "root": "x", "levels": [{}]}),
        ("data_pipelines.worlds.rooms.RoomsWorld", {"radius": 1, "layouts": {"_target_": "torch.nn.Tanh"}}),
        ("torch.optim.AdamW", {"lr": 1e-3, "betas": [0.9, 0.95]}),
        ("lightning.Trainer", {"max_epochs": None, "precision": "bf16-mixed", "devices": "auto", "logger": False}),
    ],
)
def test_right_types_pass(target: str, given: dict[str, Any]) -> None:
    assert checked({"_target_": target, "_partial_": True, **given})["_target_"] == target


def test_annotations_for_type_checkers_alone_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiny.Forgetful.__init__.__annotations__", {"factor": "NameOfNoModule"})
    assert checked({"_target_": "tiny.Forgetful", "part": 1, "factor": 2}, trusted=("tiny.",))["factor"] == 2


def test_parts_that_do_not_fit_together_are_told() -> None:
    cfg = OmegaConf.create({"one": {**LINEAR, "in_features": "${two.size}"}, "two": {}})
    with pytest.raises(
        ValueError, match=r"one.in_features: Interpolation key 'two.size' not found. The parts do not fit"
    ):
        build(cfg.one)


def test_a_constructors_own_complaint_comes_through() -> None:
    bad = {"_target_": "tiny.Forgetful", "part": {"_target_": "torch.nn.Tanh"}, "factor": -1.0}
    for node in (bad, {"_target_": "tiny.Forgetful", "part": bad}):
        with pytest.raises(ValueError, match="^factor=-1.0: expected at least 0$"):
            build(node, trusted=("tiny.", "torch.nn."))


def test_a_trainer_that_this_machine_cannot_have_is_a_users_error() -> None:
    with pytest.raises(ValueError, match="fast_dev_run"):
        build({"_target_": "lightning.Trainer", "fast_dev_run": -1, "logger": False})
