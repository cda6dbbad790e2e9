"""Perception: every encoder maps uint8 [B, T, C, H, W] to s [B, T, D], each picture on its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from lightning_jepa.perception.conv import ConvEncoder, VectorEncoder
from lightning_jepa.perception.expander import Expander
from lightning_jepa.perception.hugging_face import HuggingFaceEncoder
from lightning_jepa.perception.impala import ImpalaEncoder
from lightning_jepa.perception.standardise import Standardise
from lightning_jepa.perception.vit import SpatialViTEncoder, ViTEncoder

CONF = Path(__file__).parents[1] / "conf" / "perception"
ENCODERS: dict[str, Callable[[], torch.nn.Module]] = {
    "conv": lambda: ConvEncoder(normalise=True),
    "vector": lambda: VectorEncoder(ConvEncoder(), 24),
    "impala": lambda: ImpalaEncoder(resolution=33, widths=(4, 8), blocks=1, state_size=20),
    "vit": lambda: ViTEncoder(patch=11, width=16, depth=1, heads=2, state_size=12),
    "vit_spatial": lambda: SpatialViTEncoder(patch=8, width=16, depth=1, heads=2, channels=3),
}


def pictures(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=ENCODERS)
def encoder(request: pytest.FixtureRequest) -> torch.nn.Module:
    torch.manual_seed(0)
    return ENCODERS[request.param]()


def test_standardised_data_has_mean_0_and_std_1() -> None:
    """(x / 255 - mean) / std."""
    x = pictures(50, 3, 9, 9)
    x[:, 1] //= 10
    mean = (x / 255).mean((0, 2, 3))
    std = (x / 255).std((0, 2, 3))
    standardise = Standardise(3)
    torch.testing.assert_close(standardise(x), x / 255)
    standardise.set(mean.tolist(), std.tolist())
    y = standardise(x)
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(y.std((0, 2, 3)), torch.ones(3), atol=1e-4, rtol=0)


def test_statistics_travel_with_the_weights() -> None:
    source, copy = ConvEncoder(), ConvEncoder()
    source.standardise.set([0.1, 0.2], [0.3, 0.4])
    copy.load_state_dict(source.state_dict())
    x = pictures(2, 1, 2, 33, 33)
    assert torch.equal(source(x), copy(x))


def test_constant_channel_is_only_centred() -> None:
    standardise = Standardise(1)
    standardise.set([0.2], [0.0])
    torch.testing.assert_close(
        standardise(torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)), torch.full((1, 1, 2, 2), 0.8)
    )


@pytest.mark.parametrize(
    ("mean", "std"), [([0.1], [1.0]), ([0.1, 0.1], [1.0]), ([0.1, float("nan")], [1, 1]), ([0.1, 0.1], [1.0, -1.0])]
)
def test_statistics_that_do_not_fit_are_refused(mean: list[float], std: list[float]) -> None:
    with pytest.raises(ValueError, match=r"mean|std"):
        Standardise(2).set(mean, std)


def test_state_is_one_vector_of_the_promised_size(encoder: torch.nn.Module) -> None:
    s = encoder(pictures(2, 3, 2, 33, 33))
    assert s.shape == (2, 3, encoder.state_size)
    assert s.shape[2] == torch.Size(encoder.state_shape).numel()
    assert s.dtype == torch.float32


def test_each_picture_is_seen_on_its_own(encoder: torch.nn.Module) -> None:
    """s[b, t] depends on x[b, t] alone, in training as in evaluation: no statistics over a batch."""
    x = pictures(2, 3, 2, 33, 33)
    together = encoder(x)
    alone = torch.stack([torch.cat([encoder(x[b : b + 1, t : t + 1])[0] for t in range(3)]) for b in range(2)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_every_weight_is_trained(encoder: torch.nn.Module) -> None:
    s = encoder(pictures(4, 2, 2, 33, 33))
    (s * torch.randn_like(s)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_statistics_are_found_in_every_encoder(encoder: torch.nn.Module) -> None:
    encoder.standardise.set([0.5, 0.5], [0.1, 0.1])
    assert sum(isinstance(m, Standardise) for m in encoder.modules()) == 1


@pytest.mark.parametrize(
    "wrong",
    [pictures(2, 3, 2, 65, 65), pictures(2, 3, 3, 33, 33), pictures(3, 2, 33, 33), torch.zeros(2, 3, 2, 33, 33)],
)
def test_other_pictures_are_refused(encoder: torch.nn.Module, wrong: Tensor) -> None:
    with pytest.raises(ValueError, match="expected"):
        encoder(wrong)


@pytest.mark.parametrize(("resolution", "side"), [(33, 9), (65, 9), (129, 9), (64, 8), (28, 7)])
def test_conv_halves_until_the_map_is_small(resolution: int, side: int) -> None:
    encoder = ConvEncoder(resolution=resolution, widths=(4, 8), channels=5)
    assert encoder.state_shape == (5, side, side)
    assert encoder(pictures(1, 1, 2, resolution, resolution)).shape == (1, 1, 5 * side * side)


def test_conv_state_is_local_and_channel_first() -> None:
    """A change in one corner of the picture changes the same corner of the map, and nothing far from it."""
    encoder = ConvEncoder()
    x = torch.zeros(1, 1, 2, 33, 33, dtype=torch.uint8)
    y = x.clone()
    y[..., :3, -3:] = 255
    changed = (encoder(x) != encoder(y)).view(16, 9, 9).any(0)
    assert changed[0, -1]
    assert not changed[4:].any()
    assert not changed[:, :5].any()


def test_normalised_map_has_unit_features_at_each_place() -> None:
    s = ConvEncoder(normalise=True)(pictures(2, 1, 2, 33, 33)).view(2, 16, 81)
    torch.testing.assert_close(s.mean(1), torch.zeros(2, 81), atol=1e-5, rtol=0)
    torch.testing.assert_close(s.var(1, unbiased=False), torch.ones(2, 81), atol=0.05, rtol=0)


@pytest.mark.parametrize("widths", [(), (4, 4, 4)])
def test_conv_refuses_widths_that_can_not_be_used(widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="widths"):
        ConvEncoder(widths=widths)


def test_impala_has_the_size_of_eb_jepa() -> None:
    """65 x 65 x 2 -> 32 x 9 x 9 = 2592 -> 512, 1.43 million parameters."""
    encoder = ImpalaEncoder()
    assert encoder.network[-2].in_features == 2592
    assert encoder(pictures(1, 2, 2, 65, 65)).shape == (1, 2, 512)
    assert sum(p.numel() for p in encoder.parameters()) == pytest.approx(1.43e6, rel=0.01)


def test_vit_refuses_heads_that_do_not_share_the_width() -> None:
    with pytest.raises(ValueError, match="multiple"):
        ViTEncoder(width=10, heads=4)


def test_expander_expands() -> None:
    assert Expander(8, 32)(torch.randn(2, 3, 8)).shape == (2, 3, 32)
    for sizes in ((8, 4, 3), (8, 16, 0)):
        with pytest.raises(ValueError, match="expander"):
            Expander(*sizes)


@pytest.mark.parametrize("name", ["conv", "vector", "impala", "vit", "vit_spatial"])
def test_configuration_builds(name: str) -> None:
    config = OmegaConf.load(CONF / f"{name}.yaml")
    encoder = instantiate(config)
    resolution = encoder(pictures(1, 1, 2, *[config.get("resolution", 33)] * 2))
    assert resolution.shape == (1, 1, encoder.state_size)


class TestHuggingFace:
    """Local folders with tiny models; nothing is fetched."""

    @pytest.fixture(autouse=True)
    def offline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    @pytest.fixture
    def vit(self, tmp_path: Path) -> Path:
        from transformers import ViTConfig, ViTModel

        torch.manual_seed(0)
        config = ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=28,
            patch_size=7,
        )
        ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
        return tmp_path / "vit"

    @pytest.fixture
    def convnext(self, tmp_path: Path) -> Path:
        from transformers import ConvNextConfig

        ConvNextConfig(hidden_sizes=[4, 8, 12, 16], depths=[1, 1, 1, 1]).save_pretrained(tmp_path / "convnext")
        return tmp_path / "convnext"

    def test_configuration_builds_and_loads_weights(self, vit: Path) -> None:
        config = OmegaConf.merge(
            OmegaConf.load(CONF / "hugging_face.yaml"), {"model": str(vit), "side": 28, "state_size": 16}
        )
        first, second = instantiate(config), instantiate(config)
        x = pictures(2, 3, 2, 33, 33)
        assert first(x).shape == (2, 3, 16)
        assert torch.equal(first(x), second(x))

    def test_random_weights_from_a_configuration_alone(self, convnext: Path) -> None:
        encoder = HuggingFaceEncoder(str(convnext), resolution=32, side=32, state_size=16, pretrained=False)
        s = encoder(pictures(2, 1, 2, 32, 32))
        assert s.shape == (2, 1, 16)
        assert s.std(0).min() > 0

    def test_colour_pictures_reach_the_model_unchanged(self, vit: Path) -> None:
        encoder = HuggingFaceEncoder(str(vit), image_channels=3, resolution=28, side=28, state_size=16)
        x = pictures(2, 1, 3, 28, 28)
        expected = encoder.network.model(pixel_values=x[:, 0] / 255).last_hidden_state.mean(1)
        torch.testing.assert_close(encoder(x)[:, 0], expected, atol=1e-5, rtol=1e-4)

    def test_frozen_model_keeps_its_weights_and_its_mode(self, vit: Path) -> None:
        encoder = HuggingFaceEncoder(str(vit), side=28, state_size=16, frozen=True).train()
        encoder(pictures(2, 1, 2, 33, 33)).square().sum().backward()
        assert encoder.training
        assert not any(m.training for m in encoder.network.model.modules())
        assert all(p.grad is None for p in encoder.network.model.parameters())
        assert encoder.network.colours.weight.grad is not None

    def test_wrong_size_is_told(self, vit: Path) -> None:
        with pytest.raises(ValueError, match=r"perception\.state_size=16"):
            HuggingFaceEncoder(str(vit), side=28, state_size=20)

    @pytest.mark.parametrize("folder", [".", "missing"])
    def test_missing_model_is_told(self, tmp_path: Path, folder: str) -> None:
        with pytest.raises(ValueError, match=r"^perception\.model=.* can't be loaded: give a local folder"):
            HuggingFaceEncoder(str(tmp_path / folder), side=28)

    def test_missing_package_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "transformers", None)
        with pytest.raises(ValueError, match="pip install transformers"):
            HuggingFaceEncoder("some/model")
