"""Ten GAN recipes for small images in one file of plain PyTorch. Read it first: cifargan trains the same networks.

The file imports nothing of cifargan. It has DCGAN, SAGAN and BigGAN networks, hinge and cross-entropy losses, LeCam,
DiffAugment, spectral norm, and a moving average of the generator's weights, as the papers and PyTorch's documentation
describe them: textbook layers in textbook order (upsample, then convolve; convolve, then pool), spectral norm layer by
layer, `torch.optim.Adam` as it comes. Nothing is frozen, compiled or fused. `cifargan bench` measures cifargan against
this file, and a test compares both in float64, so do not optimise it.

It differs from most public code in one point: spectral norm makes one power iteration after each update of its network,
not one in every forward pass. That is faster, and makes the updates comparable with cifargan's.

    trainer = Trainer(settings, images, labels, num_classes=10)
    for _ in range(settings["trainer"]["steps"]):
        trainer.iterate()

`settings` is the configuration of one of `PRESETS` as nested dicts; `cifargan train experiment=biggan --cfg job` prints
it. Weights start as PyTorch initialises them; the benchmark copies cifargan's weights over them.

Papers: DCGAN (Radford et al. 2016), SAGAN (Zhang et al. 2019), BigGAN (Brock et al. 2019), spectral norm and projection
(Miyato et al. 2018; Miyato & Koyama 2018), LeCam (Tseng et al. 2021), DiffAugment (Zhao et al. 2020).
Shapes: N batch, Z latent, K classes, C channels, S image size. Arguments: z latents (N, Z), y labels (N,), x images
(N, 3, S, S) in [-1, 1], c conditions (N, D), s settings, sn whether to use spectral norm.
"""
# ruff: noqa: D101, D102, D103 - classes are named after the papers' parts

import copy
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PRESETS = (
    *("biggan", "biggan_lecam", "biggan_lecam_diffaug", "biggan_original"),
    *("dcgan", "dcgan64", "cdcgan_cbn", "cdcgan_concat", "dcgan_dense", "sagan_bce"),
)  # not supported: acbiggan (auxiliary classifier), csagan_wgan (weight clipping, RMSprop), quickstart
Settings = dict[str, Any]


# Layers


class SNConv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, normalised_weight(self), self.bias, self.stride, self.padding)


class SNLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, normalised_weight(self), self.bias)


class SNEmbedding(nn.Embedding):
    def forward(self, y: Tensor) -> Tensor:
        return F.embedding(y, normalised_weight(self))


def with_vectors(layer: nn.Module) -> nn.Module:
    """Add the singular vectors u and v of a layer's weight, seen as a matrix (outputs, everything else)."""
    rows, columns = layer.weight.flatten(1).shape
    layer.register_buffer("u", F.normalize(torch.randn(rows), dim=0))
    layer.register_buffer("v", F.normalize(torch.randn(columns), dim=0))
    return layer


def normalised_weight(layer: nn.Module) -> Tensor:
    """W / sigma with sigma = u^T W v, without autocast: sigma needs full precision."""
    with torch.autocast(layer.weight.device.type, enabled=False):
        sigma = layer.u @ (layer.weight.flatten(1) @ layer.v)
        return layer.weight / sigma


@torch.no_grad()
def power_iteration(network: nn.Module) -> None:
    """One power iteration for u and v of every layer with spectral norm."""
    for layer in network.modules():
        if hasattr(layer, "u"):
            matrix = layer.weight.flatten(1)
            layer.v.copy_(F.normalize(matrix.T @ layer.u, dim=0))
            layer.u.copy_(F.normalize(matrix @ layer.v, dim=0))


def conv(inputs: int, outputs: int, size: int, *, sn: bool, bias: bool = True) -> nn.Module:
    layer = SNConv2d if sn else nn.Conv2d
    made = layer(inputs, outputs, size, padding=size // 2, bias=bias)
    return with_vectors(made) if sn else made


def linear(inputs: int, outputs: int, *, sn: bool, bias: bool = True) -> nn.Module:
    return with_vectors(SNLinear(inputs, outputs, bias=bias)) if sn else nn.Linear(inputs, outputs, bias=bias)


class ConditionalBatchNorm(nn.Module):
    """Batch norm whose gain 1 + A c and bias B c are linear in a condition c (N, D)."""

    def __init__(self, channels: int, dim: int, *, eps: float, sn: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, eps=eps, affine=False)
        self.gain = linear(dim, channels, sn=sn, bias=False)
        self.bias = linear(dim, channels, sn=sn, bias=False)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.norm(x) * (1 + self.gain(c))[:, :, None, None] + self.bias(c)[:, :, None, None]


class ClassBatchNorm(nn.Module):
    """Batch norm with a gain and a bias for each class."""

    def __init__(self, channels: int, num_classes: int, *, eps: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, eps=eps, affine=False)
        self.gain = nn.Parameter(torch.ones(num_classes, channels))
        self.bias = nn.Parameter(torch.zeros(num_classes, channels))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.norm(x) * F.embedding(y, self.gain)[:, :, None, None] + F.embedding(y, self.bias)[:, :, None, None]


class Attention(nn.Module):
    """Self-attention with max-pooled keys and values, as in SAGAN and BigGAN."""

    def __init__(self, channels: int, *, sn: bool) -> None:
        super().__init__()
        self.theta = conv(channels, channels // 8, 1, sn=sn, bias=False)
        self.phi = conv(channels, channels // 8, 1, sn=sn, bias=False)
        self.g = conv(channels, channels // 2, 1, sn=sn, bias=False)
        self.out = conv(channels // 2, channels, 1, sn=sn, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        theta = self.theta(x).flatten(2)  # (N, C/8, HW)
        phi = F.max_pool2d(self.phi(x), 2).flatten(2)  # (N, C/8, HW/4)
        g = F.max_pool2d(self.g(x), 2).flatten(2)  # (N, C/2, HW/4)
        weights = F.softmax(torch.bmm(theta.transpose(1, 2), phi), dim=-1)  # (N, HW, HW/4)
        attended = torch.bmm(g, weights.transpose(1, 2)).view(len(x), -1, *x.shape[2:])  # (N, C/2, H, W)
        return x + self.gamma * self.out(attended)


class LabelMap(nn.Module):
    """Appends the label to (N, C, size, size) maps as one more channel."""

    def __init__(self, num_classes: int, dim: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.embed = nn.Embedding(num_classes, dim)
        self.linear = nn.Linear(dim, size * size)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, self.linear(self.embed(y)).view(-1, 1, self.size, self.size)], dim=1)


class Head(nn.Module):
    """A linear map of features (N, C) to logits (N,); a projection head adds <features, embedding of y>."""

    def __init__(self, s: Settings, features: int, num_classes: int, *, sn: bool) -> None:
        super().__init__()
        self.linear = linear(features, 1, sn=sn, bias=s.get("bias", True))
        if s["name"] == "projection":
            self.embed = with_vectors(SNEmbedding(num_classes, features)) if sn else nn.Embedding(num_classes, features)

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        logits = self.linear(h)[:, 0]
        return logits + (self.embed(y) * h).sum(1) if hasattr(self, "embed") else logits


# BigGAN


class GeneratorBlock(nn.Module):
    def __init__(self, channels: int, norm: Any, *, sn: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(), norm()
        self.conv1 = conv(channels, channels, 3, sn=sn)
        self.conv2 = conv(channels, channels, 3, sn=sn)
        self.shortcut = conv(channels, channels, 1, sn=sn)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = F.interpolate(F.relu(self.norm1(x, c)), scale_factor=2)
        h = self.conv2(F.relu(self.norm2(self.conv1(h), c)))
        return h + self.shortcut(F.interpolate(x, scale_factor=2))


class BigGANGenerator(nn.Module):
    def __init__(self, s: Settings, num_classes: int, size: int) -> None:
        super().__init__()
        blocks, channels, sn = size.bit_length() - 3, s["channels"], s["spectral_norm"]
        self.latent_dim, self.chunks = s["latent_dim"], blocks + 1 if s["hierarchical"] else 1
        chunk, dim, eps = self.latent_dim // self.chunks, s["class_embedding_dim"], s["batch_norm_eps"]
        if s["conditioning"] == "shared":
            self.embed = nn.Embedding(num_classes, dim)
            width = dim + chunk * s["hierarchical"]
        else:
            self.embed = nn.Identity()

        def norm() -> nn.Module:
            if s["conditioning"] == "shared":
                return ConditionalBatchNorm(channels, width, eps=eps, sn=sn)
            return ClassBatchNorm(channels, num_classes, eps=eps)

        self.stem = linear(chunk, channels * 16, sn=sn)
        self.blocks = nn.ModuleList(GeneratorBlock(channels, norm, sn=sn) for _ in range(blocks))
        self.attention = nn.ModuleList(
            Attention(channels, sn=sn) if 8 * 2**i in s["attention"] else nn.Identity() for i in range(blocks)
        )
        self.norm = nn.BatchNorm2d(channels, eps=eps)
        self.conv = conv(channels, 3, 3, sn=sn)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        stem, *parts = z.chunk(self.chunks, dim=1)
        label = self.embed(y)
        h = self.stem(stem).view(len(z), -1, 4, 4)
        for i, block in enumerate(self.blocks):
            h = self.attention[i](block(h, torch.cat([label, parts[i]], 1) if parts else label))
        return torch.tanh(self.conv(F.relu(self.norm(h))))


class DiscriminatorBlock(nn.Module):
    def __init__(self, inputs: int, channels: int, *, first: bool, down: bool, sn: bool) -> None:
        super().__init__()
        self.first, self.down = first, down
        self.conv1 = conv(inputs, channels, 3, sn=sn)
        self.conv2 = conv(channels, channels, 3, sn=sn)
        self.shortcut = conv(inputs, channels, 1, sn=sn) if down or inputs != channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        x = self.shortcut(x)
        return F.avg_pool2d(h, 2) + F.avg_pool2d(x, 2) if self.down else h + x


class BigGANDiscriminator(nn.Module):
    def __init__(self, s: Settings, num_classes: int, size: int) -> None:
        super().__init__()
        downs, channels, sn, waiting = size.bit_length() - 4, s["channels"], s["spectral_norm"], [*s["attention"]]
        self.body = nn.Sequential()
        for i in range(downs + 2):
            inputs = channels if i else 3
            self.body.append(DiscriminatorBlock(inputs, channels, first=i == 0, down=i < downs, sn=sn))
            reached = max(size >> (i + 1), 8)
            self.body.append(Attention(channels, sn=sn) if reached in waiting else nn.Identity())
            waiting = [wanted for wanted in waiting if wanted != reached]  # only after the first block of that size
        self.head = Head(s["head"], channels, num_classes, sn=sn)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(F.relu(self.body(x)).sum((2, 3)), y)


# DCGAN


class DCGANGenerator(nn.Module):
    def __init__(self, s: Settings, num_classes: int, size: int) -> None:
        super().__init__()
        self.latent_dim = s["latent_dim"]
        widths = [s["base_channels"] * 2**k for k in reversed(range(size.bit_length() - 3))]
        self.layers = nn.ModuleList([nn.ConvTranspose2d(self.latent_dim, widths[0], 4, bias=False)])
        for inputs, outputs in pairwise(widths):
            self.layers.append(nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False))
        self.conditional = s["conditional"]
        self.norms = nn.ModuleList(
            ClassBatchNorm(width, num_classes, eps=1e-5) if self.conditional else nn.BatchNorm2d(width)
            for width in widths
        )
        self.to_image = nn.ConvTranspose2d(widths[-1], 3, 4, 2, 1, bias=False)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        h = z[:, :, None, None]
        for layer, norm in zip(self.layers, self.norms, strict=True):
            h = layer(h)
            h = F.relu(norm(h, y) if self.conditional else norm(h))
        return torch.tanh(self.to_image(h))


class DCGANDiscriminator(nn.Module):
    def __init__(self, s: Settings, num_classes: int, size: int) -> None:
        super().__init__()
        widths = [s["base_channels"] * 2**k for k in range(size.bit_length() - 3)]
        self.body = nn.Sequential(nn.Conv2d(3, widths[0], 4, 2, 1, bias=False), nn.LeakyReLU(0.2))
        for inputs, outputs in pairwise(widths):
            self.body.extend([nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False), nn.BatchNorm2d(outputs)])
            self.body.append(nn.LeakyReLU(0.2))
        self.head = Head(s["head"], widths[-1] * 16, num_classes, sn=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1), y)


# Dense: a linear layer, then plain convolutions, with optional attention and label maps


class DenseGenerator(nn.Module):
    def __init__(self, s: Settings, num_classes: int, size: int) -> None:
        super().__init__()
        self.latent_dim, self.stem_channels, self.map_size = s["latent_dim"], s["stem_channels"], s["label_map_size"]
        activation = nn.ReLU() if s["activation"] == "relu" else nn.LeakyReLU(0.2)
        stem = nn.Linear(self.latent_dim, self.stem_channels * 16)
        self.layers = nn.ModuleList([nn.Sequential(stem, nn.Unflatten(1, (self.stem_channels, 4, 4)), activation)])
        self.attentions, self.label_maps = nn.ModuleList(), nn.ModuleList()
        width, at = self.stem_channels, 4
        while True:
            self.attentions.append(Attention(width, sn=False) if at in s["attention"] else nn.Identity())
            here = at == self.map_size
            self.label_maps.append(LabelMap(num_classes, s["label_embedding_dim"], at) if here else nn.Identity())
            if at == size:
                break
            expand = nn.ConvTranspose2d(width + here, s["channels"], 4, 2, 1)
            self.layers.append(nn.Sequential(expand, activation))
            width, at = s["channels"], at * 2
        self.to_image = nn.Conv2d(width + here, 3, 3, padding=1)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        h = z
        for layer, attention, label_map in zip(self.layers, self.attentions, self.label_maps, strict=True):
            h = attention(layer(h))
            h = label_map(h, y) if isinstance(label_map, LabelMap) else h
        return torch.tanh(self.to_image(h))


class DenseDiscriminator(nn.Module):
    def __init__(self, s: Settings, num_classes: int, size: int) -> None:
        super().__init__()
        if s["label_map"]:
            self.label_map = LabelMap(num_classes, s["label_embedding_dim"], size)
        inputs, self.body = 3 + s["label_map"], nn.Sequential()
        for i, channels in enumerate(s["channels"]):
            stride = 1 if i == 0 and s["full_resolution_stem"] else 2
            size //= stride
            self.body.extend([nn.Conv2d(inputs, channels, 3, stride, padding=1), nn.LeakyReLU(0.2)])
            if size in s["attention"]:
                self.body.append(Attention(channels, sn=False))
            inputs = channels
        self.dropout = nn.Dropout(s["dropout"])
        self.head = Head(s["head"], inputs * size * size, num_classes, sn=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.label_map(x, y) if hasattr(self, "label_map") else x
        return self.head(self.dropout(self.body(x).flatten(1)), y)


# Objectives


def discriminator_loss(s: Settings, real: Tensor, fake: Tensor) -> Tensor:
    target = 1 - s["label_smoothing"]
    if s["name"] == "hinge":
        return F.relu(target - real).mean() + F.relu(1 + fake).mean()
    bce = F.binary_cross_entropy_with_logits
    return bce(real, torch.full_like(real, target)) + bce(fake, torch.zeros_like(fake))


def generator_loss(s: Settings, fake: Tensor) -> Tensor:
    return -fake.mean() if s["name"] == "hinge" else F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))


def diffaugment(x: Tensor, policy: list[str]) -> Tensor:
    """Random colour, translation by up to S/8 and a hole of half the side, drawn for each image."""
    n, device, size = len(x), x.device, x.shape[-1]
    at = torch.arange(size, device=device)
    if "color" in policy:
        x = x + torch.rand(n, 1, 1, 1, device=device) - 0.5
        grey = x.mean(1, keepdim=True)
        x = (x - grey) * (torch.rand(n, 1, 1, 1, device=device) * 2) + grey
        grey = x.mean((1, 2, 3), keepdim=True)
        x = (x - grey) * (torch.rand(n, 1, 1, 1, device=device) + 0.5) + grey
    if "translation" in policy:
        reach = round(size / 8)
        down, right = (torch.randint(-reach, reach + 1, (n, 1), device=device) for _ in range(2))
        rows, columns = at - down + reach, at - right + reach  # (N, S), coordinates in the padded image
        image = torch.arange(n, device=device)[:, None, None]
        padded = F.pad(x, (reach,) * 4).permute(0, 2, 3, 1)
        x = padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if "cutout" in policy:
        half = size // 2
        top, left = (torch.randint(0, size + 1 - half % 2, (n, 1), device=device) - half // 2 for _ in range(2))
        rows, columns = ((at >= start) & (at < start + half) for start in (top, left))
        x = x * (~(rows[:, :, None] & columns[:, None, :])).to(x.dtype)[:, None]
    return x


# Training

FAMILIES = {
    "biggan": (BigGANGenerator, BigGANDiscriminator),
    "dcgan": (DCGANGenerator, DCGANDiscriminator),
    "dense": (DenseGenerator, DenseDiscriminator),
}


def build(model: Settings, *, num_classes: int, image_size: int) -> tuple[nn.Module, nn.Module]:
    """The generator and the discriminator of `settings["model"]`."""
    generator, discriminator = FAMILIES[model["generator"]["name"]]
    return (
        generator(model["generator"], num_classes, image_size),
        discriminator(model["discriminator"], num_classes, image_size),
    )


class Trainer:
    """Trains a generator and a discriminator against each other.

    Args:
        settings: a configuration as nested dicts.
        images: the training set, (n, 3, S, S) uint8, on the device to train on.
        labels: (n,) int64, on the same device.
        num_classes: K.
        autocast: dtype of autocast; None: no autocast.
    """

    def __init__(
        self,
        settings: Settings,
        images: Tensor,
        labels: Tensor,
        *,
        num_classes: int,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.images, self.labels, self.num_classes, self.dtype = images, labels, num_classes, autocast
        self.device, size = images.device, images.shape[-1]
        generator, discriminator = build(settings["model"], num_classes=num_classes, image_size=size)
        self.generator, self.discriminator = generator.to(self.device), discriminator.to(self.device)
        self.ema = copy.deepcopy(self.generator).requires_grad_(False)
        self.loss, self.trainer = settings["loss"], settings["trainer"]
        self.lecam = settings["regularizer"].get("lecam")
        self.real_anchor = self.fake_anchor = torch.zeros((), device=self.device)
        self.policy = settings["augment"].get("policy", [])
        self.g_optimizer, self.d_optimizer = (
            torch.optim.Adam(network.parameters(), lr=s["lr"], betas=tuple(s["betas"]), eps=s["eps"])
            for network, s in (
                (self.generator, settings["optimizer"]["generator"]),
                (self.discriminator, settings["optimizer"]["discriminator"]),
            )
        )
        self.step = 0
        # With batch norm, real and generated images are judged in separate batches.
        self.joint = not any(isinstance(module, nn.BatchNorm2d) for module in self.discriminator.modules())

    def iterate(self) -> None:
        """One iteration: `d_steps` updates of the discriminator, one of the generator, one of the average."""
        for _ in range(self.trainer["d_steps"]):
            self.discriminator_step(*self.real_batch(), *self.latents())
        self.generator_step(*self.latents())
        self.step += 1
        self.update_average()

    def real_batch(self) -> tuple[Tensor, Tensor]:
        index = torch.randint(len(self.images), (self.trainer["batch_size"],), device=self.device)
        x = self.images[index].float() / 127.5 - 1
        flip = torch.rand(len(x), 1, 1, 1, device=self.device) < 0.5
        return torch.where(flip, x.flip(3), x), self.labels[index]

    def latents(self) -> tuple[Tensor, Tensor]:
        n = self.trainer["batch_size"]
        z = torch.randn(n, self.generator.latent_dim, device=self.device)
        return z, torch.randint(self.num_classes, (n,), device=self.device)

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)

    def judge(self, x: Tensor, y: Tensor, x_fake: Tensor, y_fake: Tensor) -> tuple[Tensor, Tensor]:
        if self.joint:
            logits = self.discriminator(torch.cat([x, x_fake]), torch.cat([y, y_fake]))
            return logits[: len(x)], logits[len(x) :]
        return self.discriminator(x, y), self.discriminator(x_fake, y_fake)

    def discriminator_step(self, x: Tensor, y: Tensor, z: Tensor, y_fake: Tensor) -> Tensor:
        """Update the discriminator on real and generated images; returns the loss."""
        self.d_optimizer.zero_grad()
        with self.autocast():
            with torch.no_grad():
                x_fake = self.generator(z, y_fake).to(x.dtype)
            x, x_fake = diffaugment(x, self.policy), diffaugment(x_fake, self.policy)
            real, fake = (logits.to(x.dtype) for logits in self.judge(x, y, x_fake, y_fake))
        loss = discriminator_loss(self.loss, real, fake) + self.penalty(real, fake)
        loss.backward()
        self.d_optimizer.step()
        power_iteration(self.discriminator)
        return loss.detach()

    def generator_step(self, z: Tensor, y: Tensor) -> Tensor:
        """Update the generator through the discriminator; returns the loss."""
        self.g_optimizer.zero_grad()
        with self.autocast():
            x = diffaugment(self.generator(z, y).to(z.dtype), self.policy)
            fake = self.discriminator(x, y).to(z.dtype)
        loss = generator_loss(self.loss, fake)
        loss.backward()
        self.g_optimizer.step()
        power_iteration(self.generator)
        return loss.detach()

    def penalty(self, real: Tensor, fake: Tensor) -> Tensor:
        """LeCam: pull each kind of logit towards the running mean of the other."""
        if self.lecam is None:
            return real.new_zeros(())
        keep = self.lecam["decay"] if self.step >= self.lecam["start"] else 0.0
        self.real_anchor = keep * self.real_anchor + (1 - keep) * real.detach().mean()
        self.fake_anchor = keep * self.fake_anchor + (1 - keep) * fake.detach().mean()
        if self.step < self.lecam["start"]:
            return real.new_zeros(())
        pulled = F.relu(real - self.fake_anchor).square().mean() + F.relu(self.real_anchor - fake).square().mean()
        return self.lecam["weight"] * pulled

    @torch.no_grad()
    def update_average(self) -> None:
        decay = self.trainer["ema"]["decay"] if self.step > self.trainer["ema"]["start"] else 0.0
        for mean, weight in zip(self.ema.parameters(), self.generator.parameters(), strict=True):
            mean.mul_(decay).add_(weight, alpha=1 - decay)
        for mean, buffer in zip(self.ema.buffers(), self.generator.buffers(), strict=True):
            mean.copy_(buffer)
