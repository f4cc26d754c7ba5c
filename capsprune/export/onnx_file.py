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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx.inliner
import torch
from onnx.defs import OpSchema
from onnxscript import values
from torch import Tensor, nn

import capsprune
from capsprune.capsules import CapsuleNetwork
from capsprune.errors import ExportError
from capsprune.export.parity import Parity, measure_parity, require_parity
from capsprune.export.routing_op import (
    DOMAIN,
    DOMAIN_VERSION,
    IR_VERSION,
    OP_TYPE,
    check_opset,
    routing_function,
)
from capsprune.files import make_folder, replacing

#: Protobuf cannot hold more in one file.
MAX_BYTES = 2**31 - 1


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how it was verified."""

    path: Path
    bytes: int
    sha256: str
    opset: int
    #: Whether the routing was written as standard ops instead of one node.
    inline: bool
    #: Shapes by name; a size that may vary is its name.
    inputs: dict[str, list[int | str]]
    outputs: dict[str, list[int | str]]
    #: Nodes of the graph, the routing node counted as one.
    nodes: int
    max_abs_difference: float
    top1_agreement: float
    #: Images compared, summed over the batches.
    images: int
    batches: tuple[int, ...]
    #: What the export and its verification took.
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        return {**asdict(self), "path": str(self.path), "batches": list(self.batches)}


def export_onnx(
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

    The input is `image`, float32 [batch, 3, S, S] with a batch of any size. The outputs are
    `class_probabilities` [batch, J] and, for a capsule network, `poses` [batch, J, D2]. The file is
    run in ONNX Runtime on the CPU on `images` at several batch sizes, see `parity`, before it
    gets its name. The network is not changed; it is exported in evaluation mode.

    Args:
        network: a `CapsuleNetwork`, or a classifier giving logits [batch, J], to which a softmax
            is added.
        path: the file; one that exists is replaced.
        image_size: S.
        class_names: the J classes in order.
        images: normalised images [n, 3, S, S] to verify the file on.
        metadata: more keys and values for the file's `metadata_props`; `class_names` (JSON),
            `image_size` and `capsprune_version` are added here.
        opset: version of the standard ONNX ops.
        inline: write the routing as standard ops, so that the file needs no domain but ONNX's own.

    Raises:
        ExportError: if the network cannot be exported, the arguments do not fit it, or the file
            does not compute what the network computes; nothing is left on disk then.
    """
    started = time.perf_counter()
    check_opset(opset)
    expected_shape = (3, image_size, image_size)
    if images.dim() != 4 or len(images) == 0 or tuple(images.shape[1:]) != expected_shape:
        raise ExportError(
            f"Images to verify the export must be [n, 3, {image_size}, {image_size}], not "
            f"{list(images.shape)}."
        )
    exported = _Exported(network).eval()
    size = sum(t.numel() * t.element_size() for t in exported.state_dict().values())
    if size > MAX_BYTES:
        raise ExportError(
            f"The network's weights take {size / 1e9:.1f} GB and one ONNX file holds 2 GB; prune "
            "the network further before it is exported."
        )

    model = _translate(exported, image_size, opset)
    _add_routing_function(model, opset)
    if inline:
        model = _inlined(model)
    _label(
        model,
        {
            **metadata,
            "class_names": json.dumps(list(class_names)),
            "image_size": str(image_size),
            "capsprune_version": capsprune.__version__,
        },
    )
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
        inputs=inputs,
        outputs=outputs,
        nodes=nodes,
        max_abs_difference=parity.max_abs_difference,
        top1_agreement=parity.top1_agreement,
        images=parity.images,
        batches=parity.batches,
        seconds=time.perf_counter() - started,
    )


class _Exported(nn.Module):
    """A copy of the network on the CPU in float32, with the outputs of the file."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).cpu().float()
        self.output_names = ["class_probabilities"]
        if isinstance(network, CapsuleNetwork):
            self.output_names.append("poses")

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        outputs = self.network(image)
        if isinstance(outputs, Tensor):
            return (torch.softmax(outputs, dim=-1),)
        return tuple(outputs)


def _translate(exported: _Exported, image_size: int, opset: int) -> onnx.ModelProto:
    """Let PyTorch write the model; it keeps the routing as one node of our domain."""
    try:
        with quiet_export(), torch.no_grad():
            program = torch.onnx.export(
                exported,
                (torch.zeros(2, 3, image_size, image_size),),
                dynamo=True,
                opset_version=opset,
                input_names=["image"],
                output_names=exported.output_names,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                custom_translation_table={
                    torch.ops.capsprune.dynamic_routing.default: _routing_node
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


def _routing_schema() -> OpSchema:
    parameter, attribute = OpSchema.FormalParameter, OpSchema.Attribute
    optional = OpSchema.FormalParameterOption.Optional
    return OpSchema(
        OP_TYPE,
        DOMAIN,
        DOMAIN_VERSION,
        inputs=[
            parameter("u", "T"),
            parameter("weight", "T"),
            parameter("bias", "T", param_option=optional),
        ],
        outputs=[parameter("v", "T")],
        type_constraints=[("T", ["tensor(float)"], "")],
        attributes=[
            attribute("iterations", OpSchema.AttrType.INT, required=True),
            attribute("epsilon", OpSchema.AttrType.FLOAT, required=True),
        ],
    )


_ROUTING_OP = values.Op(values.Opset(DOMAIN, DOMAIN_VERSION), OP_TYPE, _routing_schema())


def _routing_node(
    u: Any, weight: Any, bias: Any, iterations: int, epsilon: float, all_gradients: bool = False
) -> Any:
    """Translate `torch.ops.capsprune.dynamic_routing`; called by PyTorch's exporter."""
    del all_gradients  # A file has no gradients.
    return _ROUTING_OP(u, weight, bias, iterations=iterations, epsilon=epsilon)


def _add_routing_function(model: onnx.ModelProto, opset: int) -> None:
    """Give the file the function for its routing nodes, if it has any."""
    nodes = [n for n in model.graph.node if n.domain == DOMAIN and n.op_type == OP_TYPE]
    kinds = {(_iterations(node), len(node.input) == 3) for node in nodes}
    if len(kinds) > 1:
        raise ExportError(
            "The network routes with several numbers of iterations, or with and without bias, and "
            "one ONNX file can hold one routing function; make its capsule layers alike."
        )
    for iterations, has_bias in kinds:
        model.functions.append(routing_function(iterations, has_bias=has_bias, opset=opset))


def _iterations(node: onnx.NodeProto) -> int:
    return next(a.i for a in node.attribute if a.name == "iterations")


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
    model.producer_version = capsprune.__version__
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
