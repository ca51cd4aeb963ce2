"""Simulate networks whose on-device latency Qualcomm publishes: the same architectures, drawn weights, our compiler.

    python -m benchmarks.zoo --soc-model 72                         # docs/data/simulated_72.csv, a row for each network
    python -m benchmarks.zoo --soc-model 52 --precision w8a8 w8a16  # rows of integers, of what is published in them
    python -m benchmarks.zoo --soc-model 52 --only vit              # one network, printed, not written
    python -m benchmarks.zoo --soc-model 52 --precision w8a8 --only resnet50 --float-border  # as the chain's graphs

Networks are torchvision's, timm's and transformers', at the sizes that are published. Where the figures for the chip 52
differ from those of docs/data/xelite_published_vs_simulated.csv, another export was simulated there, and
benchmarks.calibrate leaves the network out. Integers are made as the chain makes its own, of one drawn input, and their
border is integers, as that of the published ones is. Rows that a table has already are left as they are; what does not
compile is named, and has none. Seconds to some minutes each on one core; needs timm and torchvision.
"""

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import pandas as pd
import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.calibrate import DATA, PRECISIONS
from promptseg.export.quantize import bits_of, calibrate_on, prepared, quantized
from promptseg.hubs.devices import Chip, devices
from promptseg.hubs.local.process import run_compiler
from promptseg.hubs.local.profile import SimulatedCost, read_simulated_cost
from promptseg.hubs.local.session import CompileRequest

OPSET = 18
EAGER: dict[str, Any] = {"attn_implementation": "eager"}

Inputs = tuple[Tensor, ...]


class Output(nn.Module):
    """A network that takes pictures and hands back one tensor, whatever it hands back by itself."""

    def __init__(self, network: nn.Module, key: str | None = None, argument: str | None = None) -> None:
        super().__init__()
        self.network, self.key, self.argument = network, key, argument

    def forward(self, picture: Tensor) -> Tensor:
        """Float [1, 3, H, W] -> the tensor under `key`, or the whole output."""
        out = self.network(**{self.argument: picture}) if self.argument else self.network(picture)
        chosen: Tensor = out[self.key] if self.key else out
        return chosen


class Text(nn.Module):
    """A masked language model on 384 tokens."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, token_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Int32 and float [1, 384] -> logits [1, 384, vocabulary]."""
        logits: Tensor = self.network(input_ids=token_ids, attention_mask=attention_mask).logits
        return logits


class Clip(nn.Module):
    """CLIP's ViT-B/16: one picture against one text."""

    def __init__(self) -> None:
        super().__init__()
        vision = {"patch_size": 16, "hidden_size": 768, "intermediate_size": 3072}
        text = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
        config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=512)
        self.network = transformers.CLIPModel(config)

    def forward(self, token_ids: Tensor, picture: Tensor) -> Tensor:
        """Int32 [1, 77], float [1, 3, 224, 224] -> [1, 1]."""
        likeness: Tensor = self.network(input_ids=token_ids, pixel_values=picture).logits_per_image
        return likeness


def vision(name: str, side: int = 224, **options: object) -> Callable[[], tuple[nn.Module, Inputs]]:
    """Return a maker of torchvision's network `name`, with drawn weights."""
    return lambda: (Output(torchvision.models.get_model(name, weights=None, **options)), _picture(side))


def from_timm(name: str, side: int = 224) -> Callable[[], tuple[nn.Module, Inputs]]:
    """Return a maker of timm's network `name`, with drawn weights."""
    return lambda: (Output(timm.create_model(name, pretrained=False)), _picture(side))


def _picture(side: int) -> Inputs:
    return (torch.rand(1, 3, side, side),)


def _words() -> Inputs:
    return (torch.ones(1, 384, dtype=torch.int32), torch.ones(1, 384))


def _trocr_encoder() -> tuple[nn.Module, Inputs]:
    config = transformers.ViTConfig(
        hidden_size=384, num_attention_heads=6, intermediate_size=1536, image_size=384, **EAGER
    )
    return Output(transformers.ViTModel(config), "last_hidden_state", "pixel_values"), _picture(384)


ZOO: dict[str, Callable[[], tuple[nn.Module, Inputs]]] = {
    "squeezenet1_1": vision("squeezenet1_1"),
    "shufflenet_v2": vision("shufflenet_v2_x0_5"),
    "mnasnet05": vision("mnasnet0_5"),
    "mobilenet_v3_small": vision("mobilenet_v3_small"),
    "googlenet": vision("googlenet", aux_logits=False, init_weights=False),
    "mobilenet_v2": vision("mobilenet_v2"),
    "mobilenet_v3_large": vision("mobilenet_v3_large"),
    "inception_v3": vision("inception_v3", aux_logits=False, init_weights=False),
    "resnet18": vision("resnet18"),
    "regnet_y_800mf": vision("regnet_y_800mf"),
    "efficientnet_b0": vision("efficientnet_b0"),
    "levit": from_timm("levit_128s"),
    "densenet121": vision("densenet121"),
    "regnet": vision("regnet_x_3_2gf"),
    "resnet50": vision("resnet50"),
    "resnext50": vision("resnext50_32x4d"),
    "efficientnet_v2_s": vision("efficientnet_v2_s"),
    "resnet101": vision("resnet101"),
    "efficientnet_b4": vision("efficientnet_b4"),
    "mobile_vit": from_timm("mobilevit_s", 256),
    "convnext_tiny": vision("convnext_tiny"),
    "wideresnet50": vision("wide_resnet50_2"),
    "convnext_base": vision("convnext_base"),
    "vit": vision("vit_b_16"),
    "swin_tiny": vision("swin_t"),
    "beit": from_timm("beit_base_patch16_224"),
    "distil_bert_base_uncased_hf": lambda: (
        Text(transformers.DistilBertForMaskedLM(transformers.DistilBertConfig(**EAGER))),
        _words(),
    ),
    "bert_base_uncased_hf": lambda: (Text(transformers.BertForMaskedLM(transformers.BertConfig(**EAGER))), _words()),
    "openai_clip": lambda: (Clip(), (torch.ones(1, 77, dtype=torch.int32), *_picture(224))),
    "trocr_enc": _trocr_encoder,
    "fcn_resnet50": lambda: (
        Output(torchvision.models.get_model("fcn_resnet50", weights=None, weights_backbone=None), "out"),
        _picture(520),
    ),
}


def main() -> int:
    """Write the table; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    chips = {device.simulated_chip.soc_model: device.simulated_chip for device in devices()}
    parser.add_argument("--soc-model", type=int, choices=sorted(chips), required=True, help="the simulated chip")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["fp16"], help="default: fp16")
    parser.add_argument("--only", nargs="+", choices=ZOO, help="simulate these, print their rows, write nothing")
    parser.add_argument("--float-border", action="store_true", help="of integers: keep inputs and outputs float32")
    options = parser.parse_args()
    timm.layers.set_fused_attn(False)  # attention as products and a softmax, as the published networks have it
    torch.backends.mha.set_fastpath_enabled(False)
    if options.float_border and not options.only:
        parser.error("--float-border is for a look at some networks: wanted --only with it")
    path = DATA / f"simulated_{options.soc_model}.csv"
    table = pd.read_csv(path) if not options.only else pd.DataFrame(columns=["model", "precision"])
    done = set(zip(table["model"], table["precision"], strict=True))
    wanted = [each for each in _published(options.precision, options.only or ZOO) if each not in done]
    for name, precision in tqdm(wanted, desc=f"simulate soc_model {options.soc_model}", unit="network"):
        try:
            figures = simulate(name, precision, chips[options.soc_model], options.float_border)
        except (ValueError, OSError) as error:
            tqdm.write(f"{name} in {precision} is left out: {error}", file=sys.stderr)
            continue
        row = pd.DataFrame([{"model": name, "precision": precision, **figures}])
        table = pd.concat([table, row]) if len(table) else row
        if not options.only:
            table.to_csv(path, index=False, lineterminator="\n")
    print(table.to_string(index=False))
    return 0


def _published(precisions: list[str], names: Iterable[str]) -> list[tuple[str, str]]:
    """Return name and precision of each network: in integers, of those that are published in them."""
    table = pd.read_csv(DATA / "published_latencies.csv")
    known = set(zip(table["model"], table["precision"], strict=True))
    return [(name, each) for each in precisions for name in names if each == "fp16" or (name, each) in known]


def simulate(name: str, precision: str, chip: Chip, float_border: bool = False) -> dict[str, float | int]:
    """Export, quantize, compile and simulate one network; milliseconds and MB (1e6 bytes).

    Raises what `run_compiler` raises. The borders of integers are integers unless `float_border`.
    """
    with tempfile.TemporaryDirectory(prefix="promptseg-") as folder:
        graph = Path(folder) / "model.onnx"
        inputs = _export(name, graph)
        if precision != "fp16":
            onnx.save(_quantize(graph, inputs, precision, float_border), graph)
        wrapper, profile = Path(folder) / "compiled.onnx", Path(folder) / "profile.csv"
        run_compiler(graph.parent, CompileRequest(graph.name, str(wrapper), chip, str(profile), verbose=False))
        cost = read_simulated_cost(profile)
        binary_mb = wrapper.with_name("compiled_qnn.bin").stat().st_size / 1e6
    return _row(cost, binary_mb)


def _quantize(graph: Path, inputs: Inputs, precision: str, float_border: bool) -> onnx.ModelProto:
    """Return the graph as the chain quantizes its own: ranges are of the one drawn input, by min-max."""
    plain = prepared(graph)
    names = [value.name for value in plain.graph.input]
    feed = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
    made = quantized(calibrate_on(plain, [feed], "minmax"), bits_of(plain.graph.node, precision))
    if not float_border:
        _take_off_border(made.graph)
    return made


def _take_off_border(graph: onnx.GraphProto) -> None:
    """Let a quantized graph take and give integers, as those that are published do: without its outermost conversions.

    A float input without a conversion, or one that is read by other nodes, too, stays as it is.
    """
    types = {each.name: each.data_type for each in graph.initializer}
    for value in graph.input:
        readers = [node for node in graph.node if value.name in node.input]
        if [node.op_type for node in readers] == ["QuantizeLinear"]:
            (reader,) = readers
            value.type.tensor_type.elem_type = types[reader.input[2]]
            for node in graph.node:
                node.input[:] = [value.name if name == reader.output[0] else name for name in node.input]
            graph.node.remove(reader)
    for value in graph.output:
        maker = next(node for node in graph.node if value.name in node.output)
        if maker.op_type == "DequantizeLinear":
            value.type.tensor_type.elem_type = types[maker.input[2]]
            value.name = maker.input[0]
            graph.node.remove(maker)


def _export(name: str, graph: Path) -> Inputs:
    """Write the network by torch's older exporter, with constants folded, and return its drawn inputs.

    The v73 figures are of that form.
    """
    torch.manual_seed(0)
    network, inputs = ZOO[name]()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that exporter's deprecation, and the tracer's remarks
        torch.onnx.export(network.eval(), inputs, graph, dynamo=False, opset_version=OPSET)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(graph)
    ort.InferenceSession(onnx.load(graph).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return inputs


def _row(cost: SimulatedCost, binary_mb: float) -> dict[str, float | int]:
    traffic = cost.input_fill_bytes + cost.fill_bytes + cost.spill_bytes + cost.output_bytes
    return {
        "simulated_ms": cost.time_us / 1e3,
        "simulated_lo_ms": cost.time_us_low / 1e3,
        "simulated_hi_ms": cost.time_us_high / 1e3,
        "ops_without_cost": cost.ops_without_cost,
        "spill_mb": round(cost.spill_bytes / 1e6, 3),
        "ddr_mb": round(traffic / 1e6, 3),
        "binary_mb": round(binary_mb, 3),
    }


if __name__ == "__main__":
    sys.exit(main())
