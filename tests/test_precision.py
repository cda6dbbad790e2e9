"""Half precision is the shipped choice where the hardware has it."""

from __future__ import annotations

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from lightning_jepa.paths import CONF
from lightning_jepa.precision import half


@pytest.fixture(params=[True, False])
def bfloat16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the CPU has it."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: request.param)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    return bool(request.param)


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("config", [*overrides])


def test_a_cpu_without_bfloat16_takes_32_bits(bfloat16: bool) -> None:
    assert half("cpu") == half("auto") == ("bf16-mixed" if bfloat16 else "32-true")


def test_other_devices_have_it(bfloat16: bool) -> None:
    assert half("gpu") == half("cuda:0") == "bf16-mixed"


def test_auto_is_whatever_else_there_is(bfloat16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert half("auto") == "bf16-mixed"


def test_no_kernels_of_half_precision_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert half("cpu") == "32-true"


def test_experiments_ask_for_it(bfloat16: bool) -> None:
    cfg = composed("experiment=two_rooms")
    assert cfg.trainer.precision == cfg.agent.precision == half("cpu")
    assert composed("experiment=two_rooms", "trainer=gpu").trainer.precision == "bf16-mixed"
    assert composed("experiment=two_rooms", "world.device=cuda").agent.precision == "bf16-mixed"
    asked = composed("experiment=two_rooms", "trainer.precision=64-true", "agent.precision=bf16-mixed")
    assert (asked.trainer.precision, asked.agent.precision) == ("64-true", "bf16-mixed")
