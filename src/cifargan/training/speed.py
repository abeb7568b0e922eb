"""Options that make an iteration fast, and which of them suit a device.

Each changes how something is computed and not what is computed; each can be set by itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar, cast

import torch
from torch import nn

from cifargan.errors import UserError
from cifargan.models.resampling import fold_

CompileMode = Literal["off", "default", "max-autotune"]
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class SpeedOptions:
    """The options in effect.

    Args:
        channels_last: weights and feature maps keep a pixel's channels side by side, as fast convolutions want them.
        tf32: float32 convolutions on a GPU round their factors to 10 bits of mantissa. Products of matrices do not:
            spectral norms are among them.
        fused: one kernel updates all weights, where torch has one.
        batched_spectral_norm: weights of one shape are normalised together.
        fold_up: an upsampling and the convolution after it are one transposed convolution.
        fold_down: a convolution and the pooling after it are one strided convolution.
        compile: torch.compile of both networks' terms.
        graph: a whole iteration is replayed from one CUDA graph.
    """

    channels_last: bool = False
    tf32: bool = False
    fused: bool = False
    batched_spectral_norm: bool = False
    fold_up: bool = False
    fold_down: bool = False
    compile: CompileMode = "off"
    graph: bool = False

    def prepare(self, network: nn.Module) -> None:
        """Give a network the forms and the memory layout that these options stand for, in place."""
        fold_(network, up=self.fold_up, down=self.fold_down)
        if self.channels_last:
            network.to(memory_format=torch.channels_last)

    def compiled(self, function: FunctionT) -> FunctionT:
        """The function, compiled if that is switched on."""
        if self.compile == "off":
            return function
        # max-autotune's own CUDA graphs conflict with the captured step.
        mode = "max-autotune-no-cudagraphs" if self.compile == "max-autotune" else "default"
        return cast(FunctionT, torch.compile(function, mode=mode, dynamic=False))

    def names(self) -> list[str]:
        """The options that are on, for a log."""
        return [
            f"{key}={value}" if isinstance(value, str) else key
            for key, value in asdict(self).items()
            if value not in (False, "off")
        ]


PLAIN = SpeedOptions()


def remembered(state: Mapping[str, Any]) -> SpeedOptions:
    """The options that a checkpoint names; unknown ones are ignored."""
    known: dict[str, Any] = {key: state.get(key) is True for key, off in asdict(PLAIN).items() if off is False}
    return SpeedOptions(**known)


@dataclass(frozen=True, kw_only=True)
class SpeedSettings:
    """The settings under `trainer.` that make an iteration fast.

    Args:
        speed: `auto`: what is safe and pays on the device at hand; `plain`: nothing but what is set below.
        channels_last: true, false, or null: as `speed` says; see `SpeedOptions`.
        tf32: the same.
        fused: the same.
        batched_spectral_norm: the same.
        fold: both forms of folding; where `speed` decides, a short timing does, once a device.
        compile: `auto`: as `speed` says, which today is off.
        graph: true, false, or null: as `speed` says.
    """

    speed: Literal["auto", "plain"] = "auto"
    channels_last: bool | None = None
    tf32: bool | None = None
    fused: bool | None = None
    batched_spectral_norm: bool | None = None
    fold: bool | None = None
    compile: Literal["auto", "off", "default", "max-autotune"] = "auto"
    graph: bool | None = None

    def resolve(
        self,
        device: torch.device,
        *,
        deterministic: bool,
        scaled: bool,
        fusible: bool,
        recordable: bool = True,
        faster_forms: Callable[..., tuple[bool, bool]],
        before: SpeedOptions | None = None,
        alone: bool = True,
    ) -> SpeedOptions:
        """Decide.

        Args:
            device: where training runs.
            deterministic: whether runs must be bit-equal; then no timing decides anything.
            scaled: whether gradients carry fp16's loss scale. Fused updates deal with it on the device; with others
                the host must read it, which no captured step can.
            fusible: whether the updates of both optimisers have a fused form.
            recordable: whether a CUDA graph can replay the updates of both optimisers.
            faster_forms: times the folded forms; called with `channels_last`, says whether (up, down) pay.
            before: what a resumed run had decided; a second timing might end otherwise, and change bits.
            alone: whether one process trains; messages between ranks are neither captured nor compiled.

        Raises:
            UserError: several processes were asked for one of these.
        """
        if not alone:
            for key, value in (("graph", self.graph), ("compile", self.compile not in ("auto", "off"))):
                if value:
                    raise UserError(f"trainer.{key}={getattr(self, key)} works on one device alone: leave it out")
        if self.graph and not recordable:
            raise UserError(
                "trainer.graph=true: the optimizer takes no `recorded`, so it cannot be captured: leave it out"
            )
        auto = self.speed == "auto"
        cuda = device.type == "cuda"
        known = device.type in ("cuda", "cpu")
        fused = _either(self.fused, auto and known)
        default = SpeedOptions(
            channels_last=auto and known,
            tf32=auto and cuda,
            fused=fused,
            batched_spectral_norm=auto,
            graph=auto and cuda and recordable and (not scaled or (fused and fusible)),
        )
        if auto and before is not None:
            default = before
        channels_last = _either(self.channels_last, default.channels_last)
        if self.fold is not None:
            fold_up = fold_down = self.fold
        elif auto and before is None and not deterministic:
            fold_up, fold_down = faster_forms(channels_last=channels_last)
        else:
            fold_up, fold_down = default.fold_up, default.fold_down
        return SpeedOptions(
            channels_last=channels_last,
            tf32=_either(self.tf32, default.tf32),
            fused=_either(self.fused, default.fused),
            batched_spectral_norm=_either(self.batched_spectral_norm, default.batched_spectral_norm),
            fold_up=fold_up,
            fold_down=fold_down,
            compile="off" if self.compile == "auto" else self.compile,
            graph=alone and _either(self.graph, default.graph),
        )


def _either(chosen: bool | None, otherwise: bool) -> bool:
    return otherwise if chosen is None else chosen
