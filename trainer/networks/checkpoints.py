"""Networks that start from weights of elsewhere, in a local file; nothing is ever fetched.

What the pediatric classifier starts from (section 3.5.1, Table 2) comes under several names. ImageNet weights
have torchvision's, in early DenseNets ``norm.1`` where later ones have ``norm1``; those of
CheXpert trainings the same behind ``module.``, ``model.``, ``backbone.`` or ``densenet121.``, inside a
dictionary with other things. Files of our own runs are read too.

Decided here, since the papers leave it open:

- A tensor is taken over when its name and shape fit. The first convolution may have another number of
  input channels: its weights are summed over the file's channels and shared evenly among the network's, so that
  a grey picture, repeated over the channels as ``preprocess`` does, gives the same features.
- The head is taken over when it has the same number of outputs (what they mean is for the
  recipe's author to know), and is otherwise left fresh.
- Of a U-Net on an encoder (Wang et al.) the encoder is what starts from elsewhere: its way up counts as head.
- Less than 90 % of the numbers below the head is not a start but a mistake: an error.
- ``num_batches_tracked`` counters are passed over: files from before 2018 have none, and nothing reads them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from trainer.errors import RecipeError

#: Share of the numbers below the head that a checkpoint must give.
ENOUGH = 0.9
#: What a run keeps its chosen weights in.
RUN_WEIGHTS = "network.pt"

#: Where the weights lie in a file that holds other things too.
_PLACES = ("state_dict", "model", "network", "model_state_dict", "model_state", "net")
#: Outer modules that say nothing about which layer it is.
_WRAPPERS = frozenset(
    {"module", "model", "backbone", "network", "net", "densenet121", "densenet169", "resnet34", "resnet101"}
)
#: torchvision's and MONAI's names to those of :mod:`trainer.networks.classifiers`.
_RENAMED = (
    (re.compile(r"\.(denselayer\d+)\.(norm|conv)\.?([12])\."), r".\1.layers.\2\3."),
    (re.compile(r"^encoder\."), "features."),
    (re.compile(r"^(conv1|bn1|layer[1-4])\."), r"features.\1."),
    (re.compile(r"^(classifier|class_layers\.out|fc)(\.0)?\.(?=weight$|bias$)"), "head."),
)
#: Layers that belong to a task, not to what a network has learned to see.
_HEADS = ("head.", "place.")
#: The way up of a network whose other part is a classifier's.
_WAY_UP = "expanding."
_SHOWN = 6


@dataclass(frozen=True)
class CheckpointReport:
    """What a checkpoint gave; ``matched``, ``left_fresh`` and ``reshaped`` name the network's tensors.

    ``unused`` are the file's own names. ``reshaped``, a part of ``matched``, was summed over input channels.
    ``share`` of the numbers below the head were found (0-1).
    """

    file: str
    matched: tuple[str, ...]
    left_fresh: tuple[str, ...]
    unused: tuple[str, ...]
    reshaped: tuple[str, ...]
    share: float

    def __str__(self) -> str:
        """One paragraph."""
        whole = len(self.matched) + len(self.left_fresh)
        words = [
            f"{self.file}: {len(self.matched)} of the network's {whole} tensors were taken over,"
            f" {100 * self.share:.1f} % of the numbers below its head."
        ]
        if self.reshaped:
            words.append(
                f"The file's first convolution takes another number of channels: the weights of {_some(self.reshaped)}"
                " were summed over them and shared among the network's."
            )
        if any(name.endswith("head.weight") for name in self.matched):
            words.append("The head was taken over as well: its outputs must mean the same, in the same order.")
        words.append(f"Left as they were: {_some(self.left_fresh)}. In the file but not used: {_some(self.unused)}.")
        return " ".join(words)


def initialise(network: nn.Module, path: str | Path) -> CheckpointReport:
    """Copy into ``network`` what fits from a file of weights.

    Parameters
    ----------
    network
        Any of :mod:`trainer.networks.registry`; unchanged when an error is raised.
    path
        A file of ``torch.save`` (loaded with ``weights_only``, so that it cannot run code), relative to the
        working directory; or a run folder, whose chosen weights are taken.

    Raises
    ------
    RecipeError
        The file is missing, damaged, holds other things than tensors or values that are not finite, or gives less
        than :data:`ENOUGH` of the numbers below the head.
    """
    path = Path(path)
    path = path / RUN_WEIGHTS if path.is_dir() else path
    own = {_plain(name): name for name in network.state_dict() if not _is_counter(name)}
    state = network.state_dict()
    first = next(iter(own))
    given: dict[str, torch.Tensor] = {}
    reshaped, unused = [], []
    for name, tensor in _tensors(path).items():
        plain = _plain(name)
        fitted = None
        if plain in own and plain not in given:
            fitted = _fitted(tensor, state[own[plain]], channels_may_differ=plain == first)
        if fitted is None:
            unused.append(name)
            continue
        given[plain] = fitted
        if fitted.shape != tensor.shape:
            reshaped.append(own[plain])
    heads = (*_HEADS, _WAY_UP) if any(plain.startswith("features.") for plain in own) else _HEADS
    below = {plain: state[name].numel() for plain, name in own.items() if not plain.startswith(heads)}
    share = sum(below[plain] for plain in given if plain in below) / sum(below.values())
    if share < ENOUGH:
        missing = [own[plain] for plain in below if plain not in given]
        raise RecipeError(
            f"network.checkpoint {path} does not fit: it gives {100 * share:.1f} % of the network's numbers below its"
            f" head and must give {100 * ENOUGH:.0f} %. Not found: {_some(missing)}; not used: {_some(unused)}."
            " Name a checkpoint of the same network."
        )
    broken = [own[plain] for plain, tensor in given.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise RecipeError(f"network.checkpoint {path} holds values that are not finite in {_some(broken)}: replace it.")
    with torch.no_grad():
        for plain, tensor in given.items():
            state[own[plain]].copy_(tensor)
    return CheckpointReport(
        file=path.name,
        matched=tuple(name for plain, name in own.items() if plain in given),
        left_fresh=tuple(name for plain, name in own.items() if plain not in given),
        unused=tuple(unused),
        reshaped=tuple(reshaped),
        share=share,
    )


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    """The file's tensors by its own names, counters left out."""
    if not path.is_file():
        raise RecipeError(f"network.checkpoint: there is no file {path}.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        reason = str(error).strip().partition("\n")[0][:200]
        raise RecipeError(
            f"network.checkpoint {path} cannot be read: it is damaged, or holds objects besides tensors and plain"
            f" values, which could run code ({type(error).__name__}: {reason}). Save the network's state_dict alone."
        ) from None
    while isinstance(content, Mapping):
        inner = next((content[place] for place in _PLACES if isinstance(content.get(place), Mapping)), None)
        if inner is None:
            break
        content = inner
    items = content.items() if isinstance(content, Mapping) else ()
    found = {name: value for name, value in items if isinstance(name, str) and isinstance(value, torch.Tensor)}
    if found:
        return {name: value for name, value in found.items() if not _is_counter(name)}
    raise RecipeError(
        f"network.checkpoint {path} holds no named tensors, neither at its top nor under {', '.join(_PLACES)}:"
        " save the network's state_dict."
    )


def _plain(name: str) -> str:
    """A tensor's name without wrappers, as the networks here would call it."""
    parts = name.split(".")
    while len(parts) > 1 and parts[0] in _WRAPPERS:
        parts = parts[1:]
    plain = ".".join(parts)
    for pattern, replacement in _RENAMED:
        plain = pattern.sub(replacement, plain)
    return plain


def _fitted(tensor: torch.Tensor, target: torch.Tensor, *, channels_may_differ: bool) -> torch.Tensor | None:
    """The tensor in the target's shape, or None."""
    if tensor.shape == target.shape:
        return tensor
    alike = tensor.ndim == target.ndim == 4 and tensor.shape[0] == target.shape[0]
    if channels_may_differ and alike and tensor.shape[2:] == target.shape[2:]:
        return tensor.float().sum(dim=1, keepdim=True).expand_as(target) / target.shape[1]
    return None


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _some(names: list[str] | tuple[str, ...]) -> str:
    if not names:
        return "nothing"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
