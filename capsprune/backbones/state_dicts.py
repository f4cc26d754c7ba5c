"""The dictionaries of tensors in a file, and the names that libraries and wrappers give them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

#: What wrappers of a model, or of its parts, put into the names of its tensors.
_WRAPPERS = re.compile(
    r"^(?:module|_net)\.|(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
#: Names in the DenseNets that torchvision published, as in denselayer1.norm.1.weight.
_OLD_DENSENET = re.compile(r"(\bdenselayer\d+\.(?:norm|conv))\.(?=[12]\.)")
#: A part of a name that says moving average.
_AVERAGE = re.compile(r"(?:^|[._])(?:ema|swa|averaged?)(?:[._]|$)")
#: The count that `torch.optim.swa_utils.AveragedModel` keeps beside its average.
AVERAGED_COUNT = "n_averaged"
#: Where training scripts keep what they trained, beside which there may be other weights.
_USUAL = ((), *((key,) for key in ("state_dict", "model_state_dict", "model", "net")))
#: How deep dictionaries are searched, and the longest name that is looked at.
_DEPTH, _LONGEST_NAME = 5, 500

TIMMS = "timm's networks"
#: Whose names these are that torchvision has not. Numbers and parts follow any prefix.
_OTHERS_NAMES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (whose, re.compile(rf"(?:^|\.)(?:{names})"))
    for whose, names in (
        (
            TIMMS,
            r"conv_stem\.weight|conv_head\.weight|s1\.b1\.conv1\.conv\.|stages\.\d\.blocks\.\d|"
            r"pre_logits\.fc1\.|blocks\.\d\.\d\.conv_",
        ),
        ("the package efficientnet_pytorch", r"_conv_stem\.weight|_blocks\.\d+\._"),
        (
            "Hugging Face's transformers",
            r"embedder\.embedder\.|encoder\.stages\.\d\.layers\.|embeddings\.patch_embeddings\.|"
            r"embedder\.convolution\.|encoder\.blocks\.\d+\.",
        ),
        ("the code of ConvNeXt's authors", r"downsample_layers\.\d|stages\.\d\.\d\.dwconv\."),
    )
)


@dataclass
class StateDict:
    """One dictionary of tensors in a file."""

    #: Its place in the file.
    path: tuple[str, ...]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    #: Names under which there is something else.
    others: set[str] = field(default_factory=set)
    #: Pruning masks, by the names of the tensors that they are for.
    masks: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """A dictionary, and a prefix in it, under which a backbone's names were found."""

    state: StateDict
    prefix: str
    #: How many of the trunk's tensors there are.
    count: int

    @property
    def label(self) -> str:
        """Where it is, for messages."""
        return ".".join((*self.state.path, self.prefix.rstrip("."))).strip(".") or "no prefix"

    @property
    def is_usual(self) -> bool:
        """Whether it is where training scripts keep what they trained."""
        return not self.prefix and self.state.path in _USUAL

    @property
    def is_average(self) -> bool:
        """Whether what is there is a moving average of weights."""
        return (
            _AVERAGE.search(self.label.lower()) is not None
            or AVERAGED_COUNT in self.state.tensors
            or self.prefix + AVERAGED_COUNT in self.state.tensors
        )


def state_dicts(content: Any) -> Iterator[StateDict]:
    """Go through the dictionaries in a file.

    What wrappers and pruning masks add to the names of tensors is taken off, and old names are
    replaced.

    Args:
        content: of the file, from `read_content`.
    """
    seen: set[int] = set()
    waiting: list[tuple[tuple[str, ...], Any]] = [((), content)]
    while waiting:
        path, value = waiting.pop(0)
        if not isinstance(value, Mapping) or id(value) in seen or len(path) > _DEPTH:
            continue
        seen.add(id(value))
        state = StateDict(path)
        for key, item in value.items():
            if not (isinstance(key, str) and len(key) <= _LONGEST_NAME and key.isprintable()):
                continue
            if isinstance(item, Tensor):
                state.tensors[key] = item
            elif isinstance(item, Mapping):
                waiting.append(((*path, key), item))
            else:
                state.others.add(key)
        yield _plainly_named(state)


def _plainly_named(state: StateDict) -> StateDict:
    """Take off what wrappers and pruning masks add to names, and put new names for old ones."""
    plain = StateDict(state.path, others=state.others)
    for key, value in state.tensors.items():
        new = _OLD_DENSENET.sub(r"\1", key)
        while (shorter := _WRAPPERS.sub("", new)) != new:
            new = shorter
        plain.tensors[new if new not in plain.tensors else key] = value
    for key in [key for key in plain.tensors if key.endswith("_mask")]:
        masked = key.removesuffix("_mask")
        if f"{masked}_orig" in plain.tensors and masked not in plain.tensors:
            plain.tensors[masked] = plain.tensors.pop(f"{masked}_orig")
            plain.masks[masked] = plain.tensors.pop(key)
    return plain


def places_of(state: StateDict, trunk: set[str]) -> Iterator[Place]:
    """Find the prefixes under which tensors of the trunk are.

    Args:
        state: where to look.
        trunk: the names of its tensors.
    """
    counts: Counter[str] = Counter()
    for key in state.tensors:
        start = 0
        while True:
            if key[start:] in trunk:
                counts[key[:start]] += 1
            start = key.find(".", start) + 1
            if not start:
                break
    for prefix, count in counts.items():
        yield Place(state, prefix, count)


def other_namings(model: nn.Module, trunk_children: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Yield the names that parts of a backbone have when they are saved without it.

    Args:
        model: the backbone.
        trunk_children: its children that make the trunk.

    Yields:
        The backbone's names, by those in the file.
    """
    own = list(model.state_dict())
    # A sequence of its children has numbers in place of their names.
    numbers = {child: str(number) for number, (child, _) in enumerate(model.named_children())}
    yield {".".join((numbers[k.split(".")[0]], *k.split(".")[1:])): k for k in own}
    if len(trunk_children) == 1:  # The trunk is one child, and may be saved alone.
        child = f"{trunk_children[0]}."
        yield {key.removeprefix(child): key for key in own if key.startswith(child)}


def renamed(place: Place, naming: Mapping[str, str]) -> Place:
    """Return the place with its tensors under the backbone's names.

    Args:
        place: where they are.
        naming: the backbone's names, by those that they have.
    """

    def ours(key: str) -> str:
        name = key.removeprefix(place.prefix)
        return place.prefix + naming.get(name, name) if key.startswith(place.prefix) else key

    old = place.state
    new = StateDict(
        old.path,
        {ours(key): value for key, value in old.tensors.items()},
        old.others,
        {ours(key): value for key, value in old.masks.items()},
    )
    return Place(new, place.prefix, place.count)


def library_of(states: Iterable[StateDict]) -> tuple[str, str] | None:
    """Return whose names there are, if they are another library's, and an example of them.

    Args:
        states: what a file holds.
    """
    for whose, pattern in _OTHERS_NAMES:
        for state in states:
            if key := next((key for key in state.tensors if pattern.search(key)), None):
                return whose, key
    return None
