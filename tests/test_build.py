"""build: only trusted packages, nothing before everything was checked, and errors that name what to mend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from lightning_jepa.build import build

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


def test_a_constructors_own_complaint_comes_through() -> None:
    bad = {"_target_": "tiny.Forgetful", "part": {"_target_": "torch.nn.Tanh"}, "factor": -1.0}
    for node in (bad, {"_target_": "tiny.Forgetful", "part": bad}):
        with pytest.raises(ValueError, match="^factor=-1.0: expected at least 0$"):
            build(node, trusted=("tiny.", "torch.nn."))


def test_a_trainer_that_this_machine_cannot_have_is_a_users_error() -> None:
    with pytest.raises(ValueError, match="fast_dev_run"):
        build({"_target_": "lightning.Trainer", "fast_dev_run": -1, "logger": False})
