"""supmim: image encoders trained with labels and masked image modelling (arXiv 2312.00950).

    model = supmim.load("runs/digits")
    embeddings = model.embed(["image.jpg"])

See docs/api.md. Nothing is imported before it is used.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"
__all__ = ("Model", "evaluate", "load", "train_and_evaluate")

if TYPE_CHECKING:
    from supmim.commands.python import evaluate, train_and_evaluate
    from supmim.interop.load import load
    from supmim.model import Model


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def __getattr__(name: str) -> Any:
    match name:
        case "load":
            from supmim.interop.load import load as found
        case "Model":
            from supmim.model import Model as found
        case "train_and_evaluate":
            from supmim.commands.python import train_and_evaluate as found
        case "evaluate":
            from supmim.commands.python import evaluate as found
        case _:
            raise AttributeError(f"module 'supmim' has no attribute {name!r}")
    return found
