"""Train and judge GANs on CIFAR-10 class images."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cifargan.entry import train
    from cifargan.loading import load_generator

__version__ = "0.1.0"
__all__ = ["load_generator", "train"]


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is used, so that `cifargan --help` is instant."""
    if name == "load_generator":
        from cifargan.loading import load_generator

        return load_generator
    if name == "train":
        from cifargan.entry import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
