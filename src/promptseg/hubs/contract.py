"""The inputs and outputs of the deployed graphs, as data, and what an ONNX file says of itself.

Read by export, compilation, inference and tests. There are two contracts, and an export is a list of named graphs in
both: the challenge's (IEEE Low Power Computer Vision Challenge 2025, track 2), which is one graph and never changes
with the resolution at which the network works inside; and the app's, which is three: a picture is encoded once and
asked many phrases, and a phrase is encoded once for many pictures.
"""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray

from promptseg.datasets.preprocess import (
    CANVAS,
    MASK_STRIDE,
    canvas_to_square,
    logits_to_canvas,
    logits_to_mask,
    mask_from_canvas,
    picture_to_canvas,
    picture_to_square,
)
from promptseg.datasets.tokenizer import CONTEXT_LENGTH
from promptseg.files import sha256_of

MASK_THRESHOLD = 0.5  # a pixel of `pred_mask` above it is inside


@dataclass(frozen=True)
class TensorSpec:
    """Name, numpy dtype and static shape of one tensor at the graph's border."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Size of the tensor's values."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def check(self, array: NDArray[Any], owner: str) -> None:
        """Raise ValueError, with `owner` (a sample or a file), when dtype or shape differ from the contract."""
        if str(array.dtype) != self.dtype or array.shape != self.shape:
            got = f"{array.dtype} {list(array.shape)}"
            raise ValueError(f"{owner}: got {self.name} as {got}, wanted {self.dtype} {list(self.shape)}")


# The challenge's. RGB 0..255, longest edge resized to CANVAS (bilinear), zeros to the right and below.
IMAGE_INPUT = TensorSpec("image_input", "float32", (1, 3, CANVAS, CANVAS))
# Row 0: CLIP ids; row 1: attention mask (kept in the signature even where the network ignores it).
TEXT_INPUT = TensorSpec("text_input", "int32", (2, 1, CONTEXT_LENGTH))
# 1 inside, 0 outside.
PRED_MASK = TensorSpec("pred_mask", "float32", (CANVAS, CANVAS))

INPUTS = (IMAGE_INPUT, TEXT_INPUT)
OUTPUTS = (PRED_MASK,)
# The app's graphs, and their tensors. What lies between the graphs (features, embedding) depends on the network.
PICTURE, PHRASE, DECODER = "picture", "phrase", "decoder"
MASK_LOGITS, SIMILARITY, PRESENCE = "mask_logits", "similarity", "presence"
CHALLENGE, APP = "lpcvc-2025-track-2", "promptseg-app-1"
INTEGERS = ("w8a16", "w8a8")  # precisions of a GraphRecord that have nothing but integers
# part of the deployed graph -> how the module paths of its nodes begin, below `network.`; see export/deployed_graph.py
PARTS = {
    "picture": ("graph", "<input>", "resize"),
    "backbone": ("backbone",),
    "pixel_decoder": ("pixel_decoder",),
    "text_encoder": ("text_encoder",),
    "decoder": ("decoder", "mask_decoder"),
    "mask": ("best_mask", "to_canvas"),
}
OTHER = "other"
RECORDED_AS = {"challenge": CHALLENGE, "app": APP}  # in a graph, by the name in params.yaml
_PREFIX = "promptseg."  # of the record's keys in an ONNX file's metadata
_AGAIN = "run `dvc repro export`"


@dataclass(frozen=True)
class GraphRecord:
    """What an exported ONNX file says of itself, in its metadata, so that it cannot be taken for another one.

    `attends` and `mask_resize` are the checkpoint's rule of mask attention (see xdecoder/mask_decoder.py) and
    `canvas_rule` is how its masks reach the canvas (see xdecoder/model.py); `precision` is that of the arithmetic that
    the file is meant for.
    """

    model: str
    res: int
    precision: str
    checkpoint_sha256: str
    attends: str
    mask_resize: str
    canvas_rule: str
    contract: str = CHALLENGE

    @property
    def integers(self) -> bool:
        """Whether the graph is quantized."""
        return self.precision in (*INTEGERS, "mixed")

    def write_into(self, content: onnx.ModelProto) -> None:
        """Replace the record in `content`: one entry per field, in the fields' order."""
        others = [entry for entry in content.metadata_props if not entry.key.startswith(_PREFIX)]
        record = [
            onnx.StringStringEntryProto(key=_PREFIX + name, value=str(value)) for name, value in asdict(self).items()
        ]
        content.ClearField("metadata_props")
        content.metadata_props.extend([*others, *record])


def read_record(graph: Path) -> GraphRecord:
    """Read the record of an exported ONNX file.

    Raises ValueError when there is no such file, when it is no ONNX, or when its record is missing, has
    other fields or is of an unknown contract.
    """
    entries = _read_onnx(graph).metadata_props
    found = {entry.key.removeprefix(_PREFIX): entry.value for entry in entries if entry.key.startswith(_PREFIX)}
    wanted = {field.name for field in fields(GraphRecord)}
    if found.keys() != wanted:
        got = ", ".join(sorted(found)) or "none"
        raise ValueError(f"{graph}: got a record of the fields {got}, wanted {', '.join(sorted(wanted))}; {_AGAIN}")
    res = found.pop("res")
    if not res.isdecimal():
        raise ValueError(f"{graph}: got the record's res {res!r}, wanted pixels; {_AGAIN}")
    record = GraphRecord(res=int(res), **found)
    if record.contract not in CONTRACTS:
        known = " or ".join(map(repr, CONTRACTS))
        raise ValueError(f"{graph}: got a graph of the contract {record.contract!r}, wanted {known}; {_AGAIN}")
    return record


@dataclass(frozen=True)
class Graph:
    """One of the ONNX files of an export: its name, where it lies, and the tensors at its border."""

    name: str
    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @cached_property
    def sha256(self) -> str:
        """Digest of the file."""
        return sha256_of(self.path)


@dataclass(frozen=True)
class Decision:
    """What the graphs say of one phrase about one picture.

    mask: bool [CANVAS, CANVAS], or [height, width] of a picture whose size was given. non_finite: how many values it
    was decided from are NaN or infinite. presence: 0..1, how likely the picture shows the thing at all; None where the
    graphs do not say.
    """

    mask: NDArray[np.bool_]
    non_finite: int
    presence: float | None = None


@dataclass(frozen=True)
class Graphs(ABC):
    """What an export made: graphs in the order in which they run, and the record that all of them bear."""

    record: GraphRecord
    graphs: tuple[Graph, ...]

    names: ClassVar[tuple[str, ...]]  # of the graphs: each is a file <name>.onnx

    def __iter__(self) -> Iterator[Graph]:
        return iter(self.graphs)

    @cached_property
    def sha256(self) -> str:
        """What the graphs are known by together: of one, the digest of its file."""
        return joint_sha256([graph.sha256 for graph in self.graphs])

    @cached_property
    def made_from(self) -> dict[str, frozenset[str]]:
        """Which of `sources` each graph's outputs depend on: the graph's name -> names of tensors."""
        found = {spec.name: frozenset({spec.name}) for spec in self.sources}
        for graph in self.graphs:
            made_from = frozenset[str]().union(*(found[spec.name] for spec in graph.inputs))
            found |= dict.fromkeys((spec.name for spec in graph.outputs), made_from)
        return {graph.name: found[graph.outputs[0].name] for graph in self.graphs}

    @property
    @abstractmethod
    def sources(self) -> tuple[TensorSpec, TensorSpec]:
        """The tensors that come from outside: of a picture, and of a phrase."""

    @abstractmethod
    def check(self) -> None:
        """Raise ValueError where a graph's inputs or outputs are not those of the contract."""

    @abstractmethod
    def picture_tensor(self, image_input: NDArray[np.float32]) -> NDArray[Any]:
        """Turn a picture on the canvas, IMAGE_INPUT, into the first of `sources`."""

    @abstractmethod
    def read_picture(self, picture: NDArray[np.uint8]) -> NDArray[Any]:
        """Turn a picture, uint8 RGB [h, w, 3], into the first of `sources`."""

    @abstractmethod
    def phrase_tensor(self, text_input: NDArray[np.int32]) -> NDArray[np.int32]:
        """Turn a phrase's ids and attention mask, TEXT_INPUT, into the second of `sources`."""

    @abstractmethod
    def decide(self, outputs: Mapping[str, NDArray[Any]], owner: str, size: tuple[int, int] | None = None) -> Decision:
        """Decide from the last graph's outputs: the mask on the canvas, or of a picture of `size`, height and width.

        Raises ValueError, with `owner`, when they are other tensors.
        """


class ChallengeGraphs(Graphs):
    """One graph with the challenge's border."""

    names = ("model",)

    @property
    def sources(self) -> tuple[TensorSpec, TensorSpec]:
        """See `Graphs`."""
        return INPUTS

    def check(self) -> None:
        """See `Graphs`."""
        _check_border(self.graphs[0], INPUTS, OUTPUTS)

    def picture_tensor(self, image_input: NDArray[np.float32]) -> NDArray[Any]:
        """Return the canvas itself."""
        return image_input

    def read_picture(self, picture: NDArray[np.uint8]) -> NDArray[Any]:
        """Return the canvas."""
        return picture_to_canvas(picture)[None].astype(np.float32)

    def phrase_tensor(self, text_input: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return both rows."""
        return text_input

    def decide(self, outputs: Mapping[str, NDArray[Any]], owner: str, size: tuple[int, int] | None = None) -> Decision:
        """See `Graphs`."""
        pred_mask = outputs[PRED_MASK.name]
        PRED_MASK.check(pred_mask, owner)
        mask = mask_of(pred_mask) if size is None else mask_from_canvas(mask_of(pred_mask), *size)
        return Decision(mask, int(np.count_nonzero(~np.isfinite(pred_mask))))


class AppGraphs(Graphs):
    """Three graphs: picture, RGB as a camera gives it -> features; phrase -> embedding; both -> mask logits.

    Where the network can say it, the decoder has further outputs: `similarity`, float32 [1, queries], of each query to
    the phrase, and `presence`, float32 [1, 1].
    """

    names = (PICTURE, PHRASE, DECODER)

    @property
    def sources(self) -> tuple[TensorSpec, TensorSpec]:
        """See `Graphs`: the picture, uint8 [1, res, res, 3], longest edge resized to `res`, and CLIP's ids."""
        res = self.record.res
        return TensorSpec("picture", "uint8", (1, res, res, 3)), TensorSpec("phrase", "int32", (1, CONTEXT_LENGTH))

    @property
    def _mask_logits(self) -> TensorSpec:
        """Stride 4, or of a network that makes them so, 1."""
        res, shape = self.record.res, self.graphs[-1].outputs[0].shape
        cells = res if shape == (1, res, res) else -(-res // MASK_STRIDE)
        return TensorSpec(MASK_LOGITS, "float32", (1, cells, cells))

    def check(self) -> None:
        """See `Graphs`."""
        picture, phrase, decoder = self.graphs
        for graph, source in zip((picture, phrase), self.sources, strict=True):
            _check_border(graph, (source,), graph.outputs)
        said = [replace(spec, dtype="float32", shape=(1, spec.shape[-1])) for spec in decoder.outputs[1:]]
        said = [spec for spec in said if spec.name in (SIMILARITY, PRESENCE)]
        _check_border(decoder, (*phrase.outputs, *picture.outputs), (self._mask_logits, *said))

    def picture_tensor(self, image_input: NDArray[np.float32]) -> NDArray[Any]:
        """Return the canvas at `res`, rounded to whole numbers."""
        return canvas_to_square(image_input[0], self.record.res)[None]

    def read_picture(self, picture: NDArray[np.uint8]) -> NDArray[Any]:
        """Return the picture at `res`: as `picture_tensor` of its canvas, but for values that round otherwise."""
        return picture_to_square(picture, self.record.res)[None]

    def phrase_tensor(self, text_input: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return the ids."""
        return text_input[0]

    def decide(self, outputs: Mapping[str, NDArray[Any]], owner: str, size: tuple[int, int] | None = None) -> Decision:
        """See `Graphs`."""
        logits = outputs[MASK_LOGITS]
        self._mask_logits.check(logits, owner)
        logits_of_mask = (logits[0], self.record.res, self.record.canvas_rule)
        mask = logits_to_canvas(*logits_of_mask) > 0 if size is None else logits_to_mask(*logits_of_mask, *size)
        presence = float(outputs[PRESENCE].item()) if PRESENCE in outputs else None
        return Decision(mask, int(np.count_nonzero(~np.isfinite(logits))), presence)


CONTRACTS: dict[str, type[Graphs]] = {CHALLENGE: ChallengeGraphs, APP: AppGraphs}


def joint_sha256(digests: Sequence[str]) -> str:
    """Return one digest for several, in their order; of one, itself."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def read_graphs(path: Path) -> Graphs:
    """Read what an export made: a folder of ONNX files, or the one file of the challenge's contract.

    Raises ValueError when a file is missing, is no ONNX, or has another border or record than the contract says, and
    when the files of a folder do not belong together.
    """
    first = next((file for kind in CONTRACTS.values() if (file := path / f"{kind.names[0]}.onnx").is_file()), path)
    if first.is_dir():
        wanted = " or ".join(f"{kind.names[0]}.onnx" for kind in CONTRACTS.values())
        raise ValueError(f"{path}: got a folder without {wanted}, wanted exported graphs; {_AGAIN}")
    record = read_record(first)
    kind = CONTRACTS[record.contract]
    if first == path and len(kind.names) > 1:
        raise ValueError(f"{path}: got one graph of {len(kind.names)}, wanted their folder, {path.parent}")
    files = [first] if first == path else [path / f"{name}.onnx" for name in kind.names]
    others = [file for file in files if read_record(file) != record]
    if others:
        raise ValueError(f"{others[0]}: got a graph of another export than {first}; {_AGAIN}")
    contents = [_read_onnx(file).graph for file in files]
    graphs = kind(
        record,
        tuple(
            Graph(name, file, _specs(content.input), _specs(content.output))
            for name, file, content in zip(kind.names, files, contents, strict=True)
        ),
    )
    graphs.check()
    return graphs


def mask_of(pred_mask: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Decide each pixel of the network's output: float32 [CANVAS, CANVAS] -> bool of the same shape.

    A NaN is outside, as the challenge's comparison has it.
    """
    return pred_mask > MASK_THRESHOLD


def _check_border(graph: Graph, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
    for side, got, wanted in (("inputs", graph.inputs, inputs), ("outputs", graph.outputs, outputs)):
        if got != wanted:
            raise ValueError(f"{graph.path}: got {side} {_spell(got)}, wanted {_spell(wanted)}; see hubs/contract.py")


def _read_onnx(graph: Path) -> onnx.ModelProto:
    if not graph.is_file():
        raise ValueError(f"{graph}: got no such file, wanted the exported graph; run `dvc repro export`")
    try:
        return onnx.load(graph, load_external_data=False)
    except DecodeError as error:
        raise ValueError(f"{graph}: got a file that is no ONNX ({error}); run `dvc repro export` again") from error


def _specs(values: Iterable[onnx.ValueInfoProto]) -> tuple[TensorSpec, ...]:
    return tuple(_spec_of(value) for value in values)


def _spec_of(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    shape = tuple(axis.dim_value if axis.HasField("dim_value") else -1 for axis in tensor.shape.dim)  # -1: dynamic
    return TensorSpec(value.name, str(dtype), shape)


def _spell(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in specs) or "none"


def module_of(node: str) -> list[str]:
    """Return the module path of a node's name: "network.backbone.stages.0/Conv_1" -> backbone, stages, 0."""
    return node.removeprefix("network.").partition("/")[0].split(".")


def part_of(node: str) -> str:
    """Return the one of PARTS that a node belongs to, or OTHER: what the compiler adds, such as changes of layout."""
    first = module_of(node)[0]
    return next((part for part, firsts in PARTS.items() if first in firsts), OTHER)
