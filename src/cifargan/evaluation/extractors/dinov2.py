"""The network of FD-DINOv2, which agrees with human judgement better than Inception does."""

import importlib.util
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifargan.errors import UserError
from cifargan.evaluation.extractors.interface import FeatureExtractor, Features
from cifargan.evaluation.extractors.weights import PublishedWeights, find_weights, other_weights, read_state_dict

VARIABLE = "CIFARGAN_DINOV2_WEIGHTS"
URL = "https://dl.fbaipublicfiles.com/dinov2/dinov2_{0}/dinov2_{0}_pretrain.pth"
SIZE = 224
PATCH = 14
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels in [0, 1]


def _published(name: str, megabytes: int, sha256: str) -> PublishedWeights:
    return PublishedWeights(
        title=f"DINOv2 {name}", url=URL.format(name), checksum=sha256, megabytes=megabytes, variable=VARIABLE
    )


# The authors publish no hashes: these are the ones that their files have.
PUBLISHED = {
    "small": _published("vits14", 88, "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9"),
    "base": _published("vitb14", 346, "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73"),
    "large": _published("vitl14", 1218, "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428"),
}
DIMS = {"small": 384, "base": 768, "large": 1024}


class DINOv2(FeatureExtractor):
    """DINOv2 (Oquab et al. 2023): its class token is the space of FD-DINOv2 (Stein et al. 2023), with the large model.

    Features are the normalised class token, (N, 384), (N, 768) or (N, 1024); there are no class logits. Images are
    resized as Pillow's bicubic filter does, and back to whole grey levels, as in Stein et al.'s own code.

    Args:
        weights: path of the weights file; None: the environment variable CIFARGAN_DINOV2_WEIGHTS, else a download
            of 88, 346 or 1218 MB into torch's hub cache, once. Other than the published weights show in the names.
        model: size of the vision transformer; published scores are those of `large`.
        device: where to run.

    Raises:
        UserError: the extra `dinov2` is not installed, the weights can neither be found nor fetched, or the file holds
            something else.
    """

    name = "dinov2"
    has_logits = False
    resize = f"bicubic as Pillow's to {SIZE}"

    def __init__(
        self,
        *,
        weights: str | None = None,
        model: Literal["small", "base", "large"] = "large",
        device: torch.device,
    ) -> None:
        if importlib.util.find_spec("timm") is None:
            raise UserError("evaluator=dinov2 needs timm, which describes the network: pip install 'cifargan[dinov2]'")
        published = PUBLISHED[model]
        file = find_weights(published, weights)
        state = read_state_dict(file.path, advice=published.ways_out)
        self.network: nn.Module = _network(model)
        try:
            # `assign`: the network has no tensors of its own yet, see there.
            self.network.load_state_dict(_converted(state, self.network), assign=True)
        except Exception as error:  # nothing promises which one another network's weights raise in the conversion
            raise UserError(f"{file.path} holds the weights of another network: {published.ways_out}") from error
        self.network.eval().requires_grad_(False).to(device)
        self.weights_hash = file.sha256
        self.dim = DIMS[model]
        other = other_weights(published, file)
        self.suffix = f"_dinov2_vit{model[0]}14" + (f"_{other}" if other else "")
        self.mean, self.std = (torch.tensor(value, device=device).view(3, 1, 1) for value in (MEAN, STD))

    def _forward(self, images: Tensor) -> Features:
        return Features(self.network((pillow_resize(images, SIZE) / 255 - self.mean) / self.std), None)


def _network(model: str) -> Any:
    """The vision transformer without its weights, so that it costs neither time nor random numbers."""
    import timm

    with torch.device("meta"):
        return timm.create_model(f"vit_{model}_patch14_dinov2", pretrained=False, img_size=SIZE, num_classes=0)


def _converted(state: dict[str, Tensor], network: Any) -> dict[str, Tensor]:
    """An official state dict as timm's network wants it."""
    from timm.models.vision_transformer import checkpoint_filter_fn

    position = resize_position_embedding(state["pos_embed"], SIZE // PATCH)
    converted: dict[str, Tensor] = checkpoint_filter_fn({**state, "pos_embed": position}, network)
    return {key: value.float() for key, value in converted.items()}


def resize_position_embedding(embedding: Tensor, size: int) -> Tensor:
    """Bring the position embedding that DINOv2 was trained with to another grid, exactly as its authors' code does.

    That is bicubic, not antialiased, and with a tenth of a patch added to the new size, which shifts where the old
    grid is read; timm's own way gives other features.

    Args:
        embedding: (1, 1 + M M, d), the class token's first.
        size: S, patches along an edge of the new grid.

    Returns:
        (1, 1 + S S, d).
    """
    token, grid = embedding[:, :1], embedding[:, 1:]
    edge = round(grid.shape[1] ** 0.5)
    maps = grid.float().reshape(1, edge, edge, -1).permute(0, 3, 1, 2)  # (1, d, M, M)
    scale = (size + 0.1) / edge
    maps = F.interpolate(maps, scale_factor=(scale, scale), mode="bicubic")  # (1, d, S, S)
    return torch.cat([token.float(), maps.flatten(2).transpose(1, 2)], dim=1)


def pillow_resize(images: Tensor, size: int) -> Tensor:
    """Resize as Pillow's bicubic filter does, on any device: along rows, to whole grey levels, then along columns.

    Args:
        images: (N, 3, H, W) uint8.
        size: S, pixels along an edge.

    Returns:
        (N, 3, S, S) float32, whole numbers from 0 to 255.
    """
    x = images.float()
    for shape in ((images.shape[2], size), (size, size)):
        # Without `antialias`, torch's cubic is another one, with the parameter -3/4 for Pillow's -1/2.
        x = F.interpolate(x, size=shape, mode="bicubic", antialias=True, align_corners=False).round().clamp(0, 255)
    return x
