"""Everything that can be refused before an upload: the graph here, then token, device and version there."""

import difflib
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
from onnx import TensorProto

from promptseg.files import read_json, write_json
from promptseg.hubs.aihub.errors import BusyError, RefusedError, UnreachableError
from promptseg.hubs.aihub.patience import pause
from promptseg.hubs.aihub.service import Service
from promptseg.hubs.contract import check_border

PROBE_WAITS_S = (3.0, 6.0)  # with three probes of at most 11 s each: a server that is down is noticed in 42 s
DEVICES_FRESH_S = 24 * 3600.0
_REFUSED_TYPES = {TensorProto.INT64: "int64", TensorProto.BOOL: "bool", TensorProto.DOUBLE: "double"}
_COMPARISONS = {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"}
_INDEX_MAKERS = {"ArgMax", "ArgMin", "TopK"}
_MOVERS = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"}
_SHOWN = 5
_SMALL = 1024  # elements; a larger constant is no shape
_LOG = logging.getLogger(__name__)


def check_graph(graph: Path) -> None:
    """Raise ValueError when the graph is not the contract's, or holds what the device's compiler refuses or slows.

    That is int64, double and bool tensors, shapes that depend on data, and weights in a file of their own. Let through
    are results for which ONNX knows no other type: a comparison that is at once turned into numbers or chosen by, and
    an index on its way to where it is used.
    """
    check_border(graph)
    wrong = list(_unfit(graph))
    if wrong:
        shown = "; ".join(wrong[:_SHOWN]) + ("; ..." if len(wrong) > _SHOWN else "")
        raise ValueError(
            f"{graph}: got {len(wrong)} tensors that AI Hub refuses, wanted float32 or int32 of fixed shape: "
            f"{shown}; express them otherwise in the export"
        )


def _unfit(graph: Path) -> Iterator[str]:
    model = onnx.load(graph, load_external_data=False)
    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in model.graph.initializer):
        yield "weights in a file of their own, which would not be uploaded"
        return
    inferred = onnx.shape_inference.infer_shapes(_without_large(model)).graph
    makers = {name: node for node in inferred.node for name in node.output}
    for value in inferred.value_info:
        node, tensor = makers.get(value.name), value.type.tensor_type
        if node is None or node.op_type == "Constant":
            continue
        kind = _REFUSED_TYPES.get(tensor.elem_type)
        if kind is not None and not _has_no_other_type(inferred, node, value.name, makers):
            yield f"{kind} {_spell(node, value.name)}"
        elif not all(axis.HasField("dim_value") for axis in tensor.shape.dim):
            yield f"a shape that depends on data, {_spell(node, value.name)}"


def _has_no_other_type(
    graph: onnx.GraphProto, node: onnx.NodeProto, name: str, makers: Mapping[str, onnx.NodeProto]
) -> bool:
    if node.op_type in _COMPARISONS:
        return all(user.op_type in ("Cast", "Where") for user in graph.node if name in user.input)
    while node.op_type in _MOVERS and node.input[0] in makers:
        node = makers[node.input[0]]
    return node.op_type in _INDEX_MAKERS


def _spell(node: onnx.NodeProto, name: str) -> str:
    return f"{name} (of {node.op_type} {node.name or 'without a name'})"


def _without_large(model: onnx.ModelProto) -> onnx.ModelProto:
    """Turn constants that are no shapes into inputs of the same type: inference needs no values of them."""
    kept = [tensor for tensor in model.graph.initializer if _elements(tensor) <= _SMALL]
    for tensor in model.graph.initializer:
        if _elements(tensor) > _SMALL:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            model.graph.input.append(info)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def _elements(tensor: TensorProto) -> int:
    count = 1
    for size in tensor.dims:
        count *= size
    return count


def check_account(service: Service) -> None:
    """Raise RefusedError when the token is, UnreachableError in less than a minute when the server is down."""
    for wait_s in (*PROBE_WAITS_S, None):
        try:
            _LOG.info("AI Hub: signed in as %s", service.whoami())
        except (BusyError, UnreachableError) as error:
            if wait_s is None:
                raise UnreachableError(f"{error}. Nothing was uploaded or submitted; run again later") from None
            pause(wait_s)
        else:
            return


def check_device(service: Service, device: str, cache: Path) -> None:
    """Raise RefusedError, with the nearest names, when the service has no such device; the list is kept for a day."""
    names = _cached_devices(cache)
    if device not in names:
        names = service.devices()
        write_json(cache, {"listed_at": round(time.time()), "devices": names})
    if device not in names:
        near = difflib.get_close_matches(device, names, n=3, cutoff=0.5)
        known = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {len(names)} others"
        raise RefusedError(f"hub.device: got {device!r}, wanted a device that AI Hub has; {known}")


def check_qairt_version(service: Service, qairt_version: str) -> None:
    """Raise RefusedError when the service lists the versions it has, and not this one."""
    known = service.qairt_versions()
    if known and qairt_version not in known:
        raise RefusedError(f"hub.aihub.qairt_version: got {qairt_version!r}, wanted one of {', '.join(known)}")


def _cached_devices(cache: Path) -> list[str]:
    if not cache.is_file():
        return []
    content = read_json(cache)
    return list(content["devices"]) if time.time() - content["listed_at"] < DEVICES_FRESH_S else []
