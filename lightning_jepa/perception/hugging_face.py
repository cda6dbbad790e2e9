"""Vision backbones of Hugging Face transformers as perception.

Legend: N pictures, C H W image, P tokens, D state.
"""

from __future__ import annotations

from typing import Self

from torch import Tensor, nn

from lightning_jepa.perception.pictures import PictureEncoder


class Backbone(nn.Module):
    """Any number of channels -> three -> a pretrained network -> the mean of its last hidden states."""

    def __init__(self, image_channels: int, side: int, model: nn.Module) -> None:
        super().__init__()
        self.side, self.model = side, model
        self.colours = nn.Conv2d(image_channels, 3, 1, bias=False)
        nn.init.dirac_(self.colours.weight)  # colour pictures reach the pretrained network as they are

    def forward(self, pictures: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, D]."""
        coloured = self.colours(pictures)
        resized = nn.functional.interpolate(coloured, size=(self.side, self.side), mode="bilinear", antialias=True)
        hidden: Tensor = self.model(pixel_values=resized).last_hidden_state
        # Transformers answer with tokens [N, P, D], convolutional networks with a map [N, D, h, w].
        return hidden.mean(1) if hidden.dim() == 3 else hidden.mean((2, 3))


class HuggingFaceEncoder(PictureEncoder):
    """A Hugging Face vision model as perception: s = Enc(x), the mean of its last hidden states.

    Args:
        model: a local folder, or the name of a model on the hub (for instance "facebook/dinov2-small").
        image_channels: C; other than three are mapped to three by a learned 1x1 convolution.
        resolution: H and W of the observations.
        side: pixels along each side of the pictures that the model is given.
        state_size: D, the size of the model's hidden states.
        pretrained: load weights; otherwise only the configuration is read, and the weights are random.
        frozen: keep the weights of the model as they are. Then nothing can collapse, and nothing adapts.

    Raises:
        ValueError: if the package transformers is missing, the model can't be found or is not of that `state_size`.
    """

    network: Backbone

    def __init__(
        self,
        model: str,
        image_channels: int = 2,
        resolution: int = 33,
        side: int = 224,
        state_size: int = 384,
        pretrained: bool = True,
        frozen: bool = False,
    ) -> None:
        super().__init__(image_channels, resolution, (state_size,))
        try:
            from transformers import AutoConfig, AutoModel
        except ImportError as error:
            raise ValueError(
                "perception=hugging_face needs the package transformers, which is not installed: "
                "run `pip install transformers`, or choose another perception"
            ) from error
        try:
            config = AutoConfig.from_pretrained(model)
            backbone = AutoModel.from_pretrained(model) if pretrained else AutoModel.from_config(config)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"perception.model={model!r} can't be loaded: give a local folder that holds config.json"
                f"{' and weights' if pretrained else ''}, or the name of a model on the hub ({error})"
            ) from error
        found = getattr(config, "hidden_sizes", [getattr(config, "hidden_size", None)])[-1]
        if found != state_size:
            raise ValueError(f"{model!r} has hidden states of size {found}: set perception.state_size={found}")
        self.network = Backbone(image_channels, side, backbone)
        self.frozen = frozen
        if frozen:
            backbone.requires_grad_(False)
            self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode, but keep a frozen model in the one in which it answers alike each time."""
        super().train(mode)
        if self.frozen:
            self.network.model.eval()
        return self
