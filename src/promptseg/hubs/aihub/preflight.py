"""What can be refused before an upload, and before training: the graph here; then token, device and version there."""

import difflib
import hashlib
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
from onnx import TensorProto

from promptseg.files import read_json, write_json
from promptseg.hubs.aihub import jobs
from promptseg.hubs.aihub.service import BusyError, RefusedError, Service, UnreachableError, read_configuration
from promptseg.hubs.contract import INTEGERS, read_graphs
from promptseg.params import HubConfig

SIGN_IN_WAITS_S = (3.0, 6.0)  # with three tries of at most 11 s each: a server that is down is noticed in 42 s
ACCOUNTS = "aihub/accounts.json"  # which account each token that signed in belongs to
_REFUSED_TYPES = {TensorProto.INT64: "int64", TensorProto.BOOL: "bool", TensorProto.DOUBLE: "double"}
_COMPARISONS = {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"}
_INDEX_MAKERS = {"ArgMax", "ArgMin", "TopK"}
_MOVERS = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"}
_SHOWN = 5
_SMALL = 1024  # elements; a larger constant is no shape
_LOG = logging.getLogger(__name__)


def check_graph(graphs: Path) -> None:
    """Raise ValueError when graphs are not their contract's, or hold what the device's compiler refuses or slows.

    That is int64, double and bool tensors, shapes that depend on data, and weights in a file of their own. Let through
    are results for which ONNX knows no other type: a comparison that is at once turned into numbers or chosen by, and
    an index on its way to where it is used.
    """
    for graph in read_graphs(graphs):
        wrong = list(_unfit(graph.path))
        if wrong:
            shown = "; ".join(wrong[:_SHOWN]) + ("; ..." if len(wrong) > _SHOWN else "")
            raise ValueError(
                f"{graph.path}: got {len(wrong)} tensors that AI Hub refuses, wanted float32 or int32 of fixed shape: "
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
    kept = []
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= _SMALL:
            kept.append(tensor)
        else:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            model.graph.input.append(info)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def check_service(config: HubConfig, cache: Path | None = None, precision: str = "fp16") -> None:
    """Sign in, and check device and version of the tools, before anything is computed: three requests, no upload.

    The account is remembered below `cache`, if one is given. Raises RefusedError, with the remedy, for what the service
    says no to; UnreachableError, in less than a minute, if it cannot be reached.
    """
    service = Service()
    sign_in(service, cache)
    check_target(service, config, precision)


def sign_in(service: Service, cache: Path | None) -> str:
    """Return the account that the token belongs to, and remember it below `cache`.

    Raises RefusedError if the token is refused, UnreachableError in less than a minute if the server is down.
    """
    account = _account(service)
    if cache is not None and remembered_account(cache) != account:
        path = cache / ACCOUNTS
        write_json(path, (read_json(path) if path.is_file() else {}) | {_fingerprint(): account})
    return account


def remembered_account(cache: Path) -> str | None:
    """Return the account of the present token without asking the service; None if it never signed in from here."""
    path = cache / ACCOUNTS
    return read_json(path).get(_fingerprint()) if path.is_file() else None


def check_target(service: Service, config: HubConfig, precision: str) -> None:
    """Raise RefusedError if the service has no such device, it lacks what the precision needs, or no such tools."""
    devices = service.devices()
    if config.device not in devices:
        near = difflib.get_close_matches(config.device, devices, n=3, cutoff=0.5)
        known = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {len(devices)} others"
        raise RefusedError(f"hub.device: got {config.device!r}, wanted a device that AI Hub has; {known}")
    attributes = devices[config.device]
    lacks = _lacking(attributes, precision)
    if lacks:
        raise RefusedError(
            f"hub.device: got {config.device!r}, {lacks} ({', '.join(sorted(attributes))}), wanted an NPU that "
            f"computes in {'integers' if precision in INTEGERS else 'float16'}, as 'Snapdragon X Elite CRD' does"
        )
    version, versions = config.aihub.qairt_version, service.qairt_versions()
    if versions and version not in versions:
        raise RefusedError(f"hub.aihub.qairt_version: got {version!r}, wanted one of {', '.join(versions)}")


def _lacking(attributes: set[str], precision: str) -> str:
    """Say what a device lacks by what the service lists of it; of a device that nothing is listed of, nothing."""
    kinds = {attribute.partition(":")[0] for attribute in attributes}
    if "framework" in kinds and "framework:qnn" not in attributes:
        return "which runs no QNN binaries"
    if precision in INTEGERS:
        return ""
    if kinds & {"hexagon", "htp-supports-fp16"} and "htp-supports-fp16:true" not in attributes:
        return "whose NPU has no float16"
    return ""


def _account(service: Service) -> str:
    for wait_s in (*SIGN_IN_WAITS_S, None):
        try:
            account, email = service.sign_in()
        except (BusyError, UnreachableError) as error:
            if wait_s is None:
                raise UnreachableError(f"{error}. Nothing was uploaded or submitted") from None
            jobs.pause(wait_s)
        else:
            _LOG.info("AI Hub: signed in as %s", email)
            return account
    raise AssertionError("the last try returns or raises")


def _fingerprint() -> str:
    """A key that cannot be turned back into the token."""
    config = read_configuration()
    return hashlib.sha256(f"{config.api_url}\n{config.api_token}".encode()).hexdigest()[:16]
