"""The network of FID, IS and KID."""

import io
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch_fidelity import feature_extractor_inceptionv3

from cifargan.errors import UserError
from cifargan.evaluation.extractors.interface import FeatureExtractor, Features
from cifargan.evaluation.extractors.weights import PublishedWeights, find_weights, other_weights, read_state_dict

PUBLISHED = PublishedWeights(
    title="Inception",
    url=feature_extractor_inceptionv3.URL_INCEPTION_V3,
    checksum="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    megabytes=96,
    variable="CIFARGAN_INCEPTION_WEIGHTS",
)


class Inception(FeatureExtractor):
    """The TF-ported Inception-v3 of FID, IS and KID, as torch-fidelity carries it, with TF1's own resize to 299.

    Features are the third pooling layer's (N, 2048), logits the unbiased ones (N, 1008).

    Args:
        weights: path of the weights file; None: the environment variable CIFARGAN_INCEPTION_WEIGHTS, else a download
            of 96 MB into torch's hub cache, once. Scores of other than the published weights are no FID, and named so.
        precision: what the network computes in. bf16 is faster on a GPU and errs by about a hundredth; its scores
            have names of their own.
        device: where to run.

    Raises:
        UserError: the weights can neither be found nor fetched, or the file holds something else.
    """

    name = "inception"
    dim = 2048
    has_logits = True
    resize = "TF1 bilinear to 299"

    def __init__(
        self, *, weights: str | None = None, precision: Literal["fp32", "bf16"] = "fp32", device: torch.device
    ) -> None:
        file = find_weights(PUBLISHED, weights)
        # torch-fidelity unpickles without restraint, and a pickle can run code. So the file is read with restraint
        # here, and what torch-fidelity gets to read is our own copy.
        safe_copy = io.BytesIO()
        torch.save(read_state_dict(file.path, advice=PUBLISHED.ways_out), safe_copy)
        safe_copy.seek(0)
        try:
            with torch.random.fork_rng(devices=[]):  # its constructor draws the weights that are then replaced
                network = feature_extractor_inceptionv3.FeatureExtractorInceptionV3(
                    "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=safe_copy
                )
        except RuntimeError as error:
            raise UserError(f"{file.path} holds the weights of another network: {PUBLISHED.ways_out}") from error
        self.weights_hash = file.sha256
        self.reduced = precision == "bf16"
        self.dtype = "bfloat16" if self.reduced else "float32"
        other = other_weights(PUBLISHED, file)
        self.suffix = (f"_inception_{other}" if other else "") + ("_bf16" if self.reduced else "")
        fold_batch_norm_(network)
        # Processors and tensor cores prefer channels last; cuDNN's float32 kernels without TF32 do not.
        last = device.type == "cpu" or self.reduced
        self.network = network.to(device, memory_format=torch.channels_last if last else torch.contiguous_format)

    def _forward(self, images: Tensor) -> Features:
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.reduced):
            features, logits = self.network(images)
        return Features(features, logits)


def fold_batch_norm_(network: nn.Module) -> None:
    """Make every batch norm of torch-fidelity's network in eval mode a part of the convolution before it, in place.

    The products are formed in float64, so that each weight is rounded once.
    """
    for block in network.modules():
        if isinstance(block, feature_extractor_inceptionv3.BasicConv2d):
            block.conv = fuse_conv_bn_eval(block.conv.double(), block.bn.double()).float()
            block.bn = nn.Identity()
