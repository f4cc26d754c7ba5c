"""Write a network to an ONNX file that was shown to compute the same."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import logging
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx.inliner
import torch
from torch import Tensor, nn

from capsprune.backbones.headed import HeadedNetwork
from capsprune.backbones.stem import blank_images, image_channels
from capsprune.capsules.head import TRUNK, head_of, onnx_operators
from capsprune.capsules.onnx_op import DOMAIN, IR_VERSION, check_opset
from capsprune.errors import ExportError
from capsprune.export.parity import Parity, measure_parity, require_parity
from capsprune.export.part_names import PARTS, name_by_part
from capsprune.files import make_folder, replacing
from capsprune.pruning.file_size import FileContent
from capsprune.version import __version__

#: Protobuf cannot hold more in one file.
MAX_BYTES = 2**31 - 1


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how it was verified."""

    path: Path
    bytes: int
    sha256: str
    opset: int
    #: Whether standard ops were written in place of the ops of heads.
    inline: bool
    #: Ops of heads that the network uses, whether as nodes of their own or inlined.
    operators: tuple[str, ...]
    #: Shapes by name; a size that may vary is its name.
    inputs: dict[str, list[int | str]]
    outputs: dict[str, list[int | str]]
    #: Nodes of the graph, an op of a head counted as one.
    nodes: int
    max_abs_difference: float
    top1_agreement: float
    #: Images compared, summed over the batches.
    images: int
    batches: tuple[int, ...]
    #: What the export and its verification took.
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON can hold it."""
        return {
            **asdict(self),
            "path": str(self.path),
            "batches": list(self.batches),
            "operators": list(self.operators),
        }


def write_onnx(
    network: nn.Module,
    path: Path,
    *,
    image_size: int,
    class_names: Sequence[str],
    images: Tensor,
    metadata: Mapping[str, str],
    opset: int = 18,
    inline: bool = False,
) -> ExportReport:
    """Export a network to one ONNX file, and keep the file only if it computes the same.

    The input is `image`, float32 [batch, C, S, S] with a batch of any size, C being the
    colour channels of the images that the network takes, 1 or 3. The outputs are
    `class_probabilities` [batch, J] and what the network's head gives beside it, which for dynamic
    routing is `poses` [batch, J, D2]. The file is run in ONNX Runtime on the CPU on `images` at
    several batch sizes, see `parity`, before it gets its name. The network is not changed; it is
    exported in evaluation mode.

    Args:
        network: with a head, or a classifier giving logits [batch, J], to which a softmax is
            added.
        path: the file; one that exists is replaced.
        image_size: S.
        class_names: the J classes in order.
        images: normalised images [n, C, S, S] to verify the file on.
        metadata: more keys and values for the file's `metadata_props`; `class_names` (JSON),
            `image_size`, `parts` (JSON, as `name_by_part` returns them) and `capsprune_version` are
            added here.
        opset: version of the standard ONNX ops.
        inline: write standard ops in place of those of heads, so that the file needs no domain but
            ONNX's own.

    Raises:
        ExportError: if the network cannot be exported, the arguments do not fit it, or the file
            does not compute what the network computes; nothing is left on disk then.
    """
    started = time.perf_counter()
    check_opset(opset)
    channels = image_channels(network)
    expected_shape = (channels, image_size, image_size)
    if images.dim() != 4 or len(images) == 0 or tuple(images.shape[1:]) != expected_shape:
        raise ExportError(
            f"Images to verify the export must be [n, {channels}, {image_size}, {image_size}], not "
            f"{list(images.shape)}."
        )
    exported = _Exported(network).eval()
    size = sum(t.numel() * t.element_size() for t in exported.state_dict().values())
    if size > MAX_BYTES:
        raise ExportError(
            f"The network's weights take {size / 1e9:.1f} GB and one ONNX file holds 2 GB; prune "
            "the network further before it is exported."
        )

    model, operators = _built(exported, image_size, class_names, metadata, opset, inline)
    inputs, outputs = _shapes(model.graph.input), _shapes(model.graph.output)
    classes = outputs["class_probabilities"][-1]
    if classes != len(class_names):
        raise ExportError(
            f"The network has {classes} classes, but {len(class_names)} class names were given."
        )
    content = model.SerializeToString(deterministic=True)
    nodes = len(model.graph.node)
    del model  # Its weights are in the content.

    parity = _write_verified(content, path, exported, images.detach().float().cpu())
    return ExportReport(
        path=path,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        opset=opset,
        inline=inline,
        operators=tuple(operators),
        inputs=inputs,
        outputs=outputs,
        nodes=nodes,
        max_abs_difference=parity.max_abs_difference,
        top1_agreement=parity.top1_agreement,
        images=parity.images,
        batches=parity.batches,
        seconds=time.perf_counter() - started,
    )


def file_content(
    network: nn.Module,
    *,
    image_size: int,
    class_names: Sequence[str],
    metadata: Mapping[str, str],
    opset: int = 18,
    inline: bool = False,
) -> FileContent:
    """Find what the file would hold that `write_onnx`, of the same arguments, writes.

    It is found of other values: the exporter writes equal tensors once, such as the biases of a new
    network, and a pruned one may have them in different sizes.

    Raises:
        ExportError: if the network cannot be exported.
    """
    check_opset(opset)
    exported = _Exported(network).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in exported.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.0, generator=generator)
    model, _ = _built(exported, image_size, class_names, metadata, opset, inline)
    weights = {
        tensor.name.removeprefix("network."): len(tensor.raw_data)
        for tensor in model.graph.initializer
    }
    return FileContent(model.ByteSize() - sum(weights.values()), weights)


def _built(
    exported: _Exported,
    image_size: int,
    class_names: Sequence[str],
    metadata: Mapping[str, str],
    opset: int,
    inline: bool,
) -> tuple[onnx.ModelProto, list[str]]:
    """Translate, add what the file needs beside the graph, and label it.

    Returns:
        The model, and the ops of heads that it uses.
    """
    model = _translate(exported, image_size, opset)
    parts = name_by_part(model, exported.part_of)
    operators = [node.op_type for node in model.graph.node if node.domain == DOMAIN]
    _add_functions(model, opset)
    if inline:
        model = _inlined(model)
    _label(
        model,
        {
            **metadata,
            PARTS: json.dumps(parts),
            "class_names": json.dumps(list(class_names)),
            "image_size": str(image_size),
            "capsprune_version": __version__,
        },
    )
    return model, list(dict.fromkeys(operators))


class _Exported(nn.Module):
    """A copy of the network on the CPU in float32, with the outputs of the file."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).cpu().float()
        self._head = head_of(network)
        self.output_names = ["class_probabilities", *self._head.outputs]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return self._head.exported(self.network(image))

    def part_of(self, scope: str) -> str | None:
        """Return the part of the network that a module is or is in; None where that is not known.

        Args:
            scope: name of the module.
        """
        inner = scope.removeprefix("network").removeprefix(".")
        if not inner or not isinstance(self.network, HeadedNetwork):
            return None
        return TRUNK if inner.split(".")[0] == "trunk" else self._head.part_of(inner)


def translations() -> dict[Any, Callable[..., Any]]:
    """Return what `torch.onnx.export(..., dynamo=True)` takes as its `custom_translation_table`.

    With it PyTorch writes a network with a head, or what it is a part of, in standard ops of ONNX;
    the opset must be 18 or later, as it is by default. `write_onnx` writes nodes that may have a
    kernel of their own, and verifies the file.
    """
    return {operator.target: operator.standard for operator in onnx_operators().values()}


@dataclass(frozen=True)
class Draft:
    """A network as ONNX for one image, with every weight under its own name."""

    model: onnx.ModelProto
    #: Weights and statistics by their names in the model's graph, which may not use all of them.
    weights: dict[str, Tensor]


def draft_onnx(network: nn.Module, image_size: int, opset: int = 18) -> Draft:
    """Export a network as PyTorch traced it, to measure it rather than to keep it.

    Nothing is verified, and no node is simplified or joined with another, which a runtime does when
    it opens the file. The outputs are those of `write_onnx`, for a batch of 1.

    Args:
        network: as `write_onnx` takes it; it is not changed.
        image_size: pixels a side.
        opset: version of the standard ONNX ops.

    Raises:
        ExportError: if the network cannot be exported.
    """
    exported = _Exported(network).eval()
    model = _translate(exported, image_size, opset, draft=True)
    _add_functions(model, opset)
    return Draft(model, draft_weights(exported.network))


def draft_weights(network: nn.Module) -> dict[str, Tensor]:
    """Return the weights and statistics of a network by their names in its draft."""
    named = (
        *network.named_parameters("network", remove_duplicate=False),
        *network.named_buffers("network", remove_duplicate=False),
    )
    return {name: tensor.detach().cpu().float() for name, tensor in named}


def _translate(
    exported: _Exported, image_size: int, opset: int, *, draft: bool = False
) -> onnx.ModelProto:
    """Let PyTorch write the model; it keeps the ops of heads as nodes of our domain.

    A draft is for a batch of 1, and not optimised.
    """
    try:
        with quiet_export(), torch.no_grad():
            program = torch.onnx.export(
                exported,
                (blank_images(exported, image_size, 1 if draft else 2),),
                dynamo=True,
                opset_version=opset,
                input_names=["image"],
                output_names=exported.output_names,
                dynamic_shapes=None if draft else ({0: torch.export.Dim("batch")},),
                optimize=not draft,
                custom_translation_table={
                    operator.target: operator.node for operator in onnx_operators().values()
                },
                external_data=False,
                verbose=False,
            )
            assert program is not None
            return program.model_proto
    except Exception as error:  # The exporter raises many kinds, all of them with long texts.
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        cause = _first_line(root)
        raise ExportError(
            f"PyTorch could not export the network to ONNX opset {opset} ({cause}); try another "
            "--opset, or a network of standard layers."
        ) from error


def _add_functions(model: onnx.ModelProto, opset: int) -> None:
    """Give the file a function for each of its nodes of our domain.

    Nodes whose bodies differ, such as those of several numbers of iterations, get functions of
    different names: overloads of one name are what not every runtime heeds.
    """
    operators = onnx_operators()
    names: dict[bytes, str] = {}
    bodies: Counter[str] = Counter()
    for node in model.graph.node:
        if node.domain != DOMAIN:
            continue
        function = operators[node.op_type].function(node, opset)
        body = function.SerializeToString(deterministic=True)
        if body not in names:
            bodies[node.op_type] += 1
            number = bodies[node.op_type]
            function.name = node.op_type if number == 1 else f"{node.op_type}_{number}"
            names[body] = function.name
            model.functions.append(function)
        node.op_type = names[body]


def _inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    model = onnx.inliner.inline_local_functions(model)
    standard = [opset for opset in model.opset_import if opset.domain != DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(standard)
    return model


def _label(model: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    """Say whose file it is; drop the exporter's notes, which hold paths of this machine."""
    model.ir_version = IR_VERSION
    model.producer_name = "capsprune"
    model.producer_version = __version__
    graph = model.graph
    graph.name = "capsprune"
    for item in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        del item.metadata_props[:]
        item.doc_string = ""
    for tensor in graph.initializer:
        del tensor.metadata_props[:]
        tensor.doc_string = ""
    onnx.helper.set_model_props(model, dict(sorted(metadata.items())))


def _shapes(values_info: Sequence[onnx.ValueInfoProto]) -> dict[str, list[int | str]]:
    return {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in values_info
    }


def _write_verified(content: bytes, path: Path, network: nn.Module, images: Tensor) -> Parity:
    """Write the content beside its final name, run it from there, and only then rename it."""
    try:
        make_folder(path.parent)
        with replacing(path) as beside:
            beside.write_bytes(content)
            try:
                onnx.checker.check_model(content, full_check=True)
                parity = measure_parity(beside, network, images)
            except Exception as error:  # ONNX and ONNX Runtime each raise many kinds.
                raise ExportError(
                    f"The exported ONNX file does not run ({_first_line(error)}), so it was not "
                    "kept; export with another --opset."
                ) from error
            require_parity(parity)
    except OSError as error:
        raise ExportError(
            f"'{path}' cannot be written ({error.strerror}); give another place for the file."
        ) from error
    return parity


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


@contextlib.contextmanager
def quiet_export() -> Iterator[None]:
    """Silence PyTorch's exporter, which prints, warns and logs about its own progress."""
    disabled = logging.root.manager.disable
    logging.disable(max(disabled, logging.WARNING))
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
