"""Makes a release of the present experiment: holds its artefacts to each other, copies them, and says what it is."""

import re
import shutil
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Any

import promptseg
from promptseg.datasets.records import read_samples
from promptseg.datasets.tokenizer import ClipTokenizer
from promptseg.files import atomic_path, read_json, sha256_of, write_json
from promptseg.hubs.backends import open_hub
from promptseg.hubs.base import CompiledGraphs, read_compiled
from promptseg.hubs.contract import read_graphs
from promptseg.hubs.devices import find_device
from promptseg.metrics import FLOATS, binary_floors
from promptseg.params import HubConfig
from promptseg.release.run import MANIFEST, check
from promptseg.scoring import CPU, SPELLED, check_records, latency_known_by, with_fidelity

FORMAT, CARD = 1, "MODEL_CARD.md"
METRICS = ("score", "latency", "fidelity", "export", "training")
PROGRAM = ("release/run.py", "datasets/preprocess.py", "report/overlay.py")  # of this package, copied as they are
RUNS_ON = ("onnxruntime", "onnxruntime-qnn", "numpy", "pillow", "tokenizers")
_PACKAGE = Path(promptseg.__file__).parent
_SCORES = {
    **{"miou": "miou", "miou_low": "miou_ci_low", "miou_high": "miou_ci_high", "baseline": "miou_best_baseline"},
    **{size: f"miou_{size}" for size in ("small", "medium", "large")},
}


@dataclass(frozen=True)
class Experiment:
    """What a release is made of.

    root: the project's folder; paths: its artefacts by their names in dvc.yaml; settings: what params.yaml holds, and
    hub that section of it; commit: what git calls the state; cache: where a hub remembers.
    """

    root: Path
    paths: Mapping[str, Path]
    settings: Mapping[str, Any]
    hub: HubConfig
    commit: str
    cache: Path


@dataclass(frozen=True)
class Choice:
    """What to put in: `devices` (none: the experiment's own), and what to do where something is not as it should be.

    compile_others: compile for devices that the experiment was not compiled for. cpu_only: leave binaries out. force:
    release in spite of a broken fidelity, and say so in it.
    """

    devices: Sequence[str]
    compile_others: bool
    cpu_only: bool
    force: bool


def release(target: Path, experiment: Experiment, choice: Choice) -> dict[str, Any]:
    """Write the folder `target` and `target`.zip, each whole or not at all, and return the manifest.

    Raises ValueError, before anything is written, for artefacts that are missing or do not belong together, for masks
    that are not the scored ones, for a device that was not compiled for, and for a `target` that is no release.
    """
    if target.exists() and not (target / MANIFEST).is_file():
        raise ValueError(f"{target}: got something that is no release, wanted a new folder or an earlier release")
    records = verify(experiment)
    warning = distrust(records["fidelity"], experiment.hub)
    if warning and not choice.force:
        raise ValueError(f"{warning}; make it sound and run `dvc repro`, or release it marked so (--force)")
    binaries = _devices(choice, records["compiled"])
    packed = target.with_name(target.name + ".zip")
    with atomic_path(target) as folder, atomic_path(packed) as archive:
        folder.mkdir()
        held = [_put_binary(folder, experiment, device, compiled) for device, compiled in binaries]
        manifest = _manifest(experiment, records, held, warning)
        _put_files(folder, experiment, manifest, records)
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        manifest["files"] = {
            name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)} for name in names
        }
        write_json(folder / MANIFEST, manifest)
        check(folder)
        _pack(folder, archive, target.name)
    return manifest


def verify(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Return the records of an experiment, after holding each to all others.

    Raises ValueError for one that is missing, or is of another graph, checkpoint, device or settings.
    """
    paths, settings = experiment.paths, experiment.settings
    needed = ("checkpoint", "description", "samples", "predictions", "score", *METRICS)
    missing = [str(paths[name]) for name in needed if not paths[name].is_file()]
    if missing:
        raise ValueError(f"got no {', '.join(missing)}; run `dvc repro`, or `dvc checkout` if it ran before")
    graphs, records = read_graphs(paths["graphs"]), {name: read_json(paths[name]) for name in METRICS}
    graph, digest = graphs.record, sha256_of(paths["checkpoint"])
    if graph.checkpoint_sha256 != digest:
        raise ValueError(
            f"{paths['graphs']}: got a graph of the checkpoint {graph.checkpoint_sha256:.12}, and {digest:.12} is in "
            f"{paths['checkpoint']}, wanted the one that it was exported from; run `dvc repro`"
        )
    compiled = read_compiled(graphs, paths["compiled"], experiment.hub)
    records |= {"checkpoint": read_json(paths["description"])["provenance"], "compiled": asdict(compiled)}
    filed_under = {"model": settings["model"], "res": settings["res"], "device": experiment.hub.device}
    filed_under |= {"precision": compiled.precision, "graph_sha256": graphs.sha256}
    check_records(filed_under | {"predictions_sha256": sha256_of(paths["predictions"])}, records)
    score, fidelity = records["score"], records["fidelity"]
    scored = with_fidelity({name: score[name] for name in ("miou", "miou_ci_low", "miou_ci_high")}, fidelity)
    other = [name for name, value in (scored | {"phrases": fidelity["phrases"]}).items() if score.get(name) != value]
    if other:
        raise ValueError(
            f"{paths['score']}: got a score of other masks than {paths['fidelity']} is of ({', '.join(other)}), wanted "
            "one run's; run `dvc repro`"
        )
    return records


def distrust(fidelity: Mapping[str, Any], floors: HubConfig) -> str:
    """Say why the masks of the binary, or of its precision, are not to be trusted; nothing where they are.

    `fidelity` is what fidelity.json holds. Where nothing was compiled the host ran the scored graph itself.
    """
    if fidelity["non_finite"]:
        return f"broken fidelity: {fidelity['non_finite']} of the scored masks hold values that are no numbers"
    precision, float32 = fidelity["precision"], (fidelity.get("float32") or {}).get("iou_mean")
    wanted = {
        "binary": binary_floors(precision, float32, floors.min_fidelity_mean, floors.min_fidelity_worst),
        "float32": (floors.min_fidelity_mean if precision in FLOATS else 0.0, 0.0),
    }
    for part, (average, worst) in wanted.items():
        compared = fidelity.get(part) or {}
        mean, lowest = compared.get("iou_mean"), compared.get("iou_worst")
        if mean is None or lowest is None:
            if part == "binary" and precision != "fp32":
                return "broken fidelity: nothing says that the binary gives the scored masks (hub.emulator_samples)"
            continue
        if mean < average or lowest < worst:
            return (
                f"broken fidelity: IoU of the masks of {compared['runner']} with those of {compared['reference']} is "
                f"{mean} on average and {lowest} at worst, wanted {average:.3f} and {worst}"
            )
    return ""


def _devices(choice: Choice, compiled: Mapping[str, Any]) -> list[tuple[str, CompiledGraphs | None]]:
    """Return the devices to put in, each with what the experiment compiled for it, or None: to be compiled."""
    own = CompiledGraphs.of(compiled)
    if choice.cpu_only:
        return []
    chosen = list(dict.fromkeys(choice.devices)) or [own.device]
    others = [name for name in chosen if name != own.device or own.binaries[0].wrapper_file is None]
    if not others or choice.compile_others:
        for name in others:
            find_device(name)
        return [(name, None if name in others else own) for name in chosen]
    if others == [own.device]:
        why = own.note or "its binary came from the cloud, without the ONNX file that ONNX Runtime opens"
    else:
        why = f"the experiment was compiled for {own.device!r}"
    raise ValueError(
        f"--device: got {', '.join(map(repr, others))}, which there is no binary for ({why}); `--compile` makes it "
        "here, `--cpu-only` leaves binaries out"
    )


def _put_binary(folder: Path, experiment: Experiment, name: str, compiled: CompiledGraphs | None) -> dict[str, Any]:
    """Copy a device's binary into the release, or compile it there, and return its row of the manifest."""
    device, place = find_device(name), re.sub(r"\W+", "-", name.lower())
    if compiled is not None:
        source = experiment.paths["compiled"]
        (folder / place).mkdir()
        for each in compiled.binaries:
            for file in (each.wrapper_file, each.binary_file):
                shutil.copyfile(source / str(file), folder / place / str(file))
    else:
        hub = open_hub(replace(experiment.hub, backend="local", device=name), experiment.cache)
        compiled = hub.compile(experiment.paths["graphs"], folder / place)
        if not compiled.placed_on_npu:
            raise ValueError(f"--compile: {compiled.note}; `--cpu-only` leaves binaries out")
        (folder / place / MANIFEST).unlink()
    return {
        "device": name,
        "wrappers": {each.graph: f"{place}/{each.wrapper_file}" for each in compiled.binaries},
        "chip": compiled.chip,
        **asdict(device.chip),
        "masks_compared": name == experiment.hub.device and experiment.hub.emulator_samples > 0,
        "tool_versions": dict(compiled.tool_versions),
    }


def _manifest(
    experiment: Experiment, records: Mapping[str, Any], binaries: list[dict[str, Any]], warning: str
) -> dict[str, Any]:
    graphs, versions = read_graphs(experiment.paths["graphs"]), {"promptseg": version("promptseg")}
    graph = graphs.record
    for binary in binaries:
        versions |= binary.pop("tool_versions")
    return {
        "format": FORMAT,
        "name": f"{graph.model} at {graph.res} px, {graph.precision}",
        "warning": warning,
        "contract": graph.contract,
        "res": graph.res,
        "canvas_rule": graph.canvas_rule,
        "graphs": {each.name: each.path.name for each in graphs},
        "graph_sha256": records["compiled"]["graph_sha256"],
        "checkpoint_sha256": graph.checkpoint_sha256,
        "git_commit": experiment.commit,
        "tool_versions": {**records["compiled"]["tool_versions"], **versions},
        "binaries": binaries,
        "params": dict(experiment.settings),
    }


def _put_files(folder: Path, experiment: Experiment, manifest: Mapping[str, Any], records: Mapping[str, Any]) -> None:
    for graph in read_graphs(experiment.paths["graphs"]):
        shutil.copyfile(graph.path, folder / graph.path.name)
    for name in PROGRAM:
        shutil.copyfile(_PACKAGE / name, folder / Path(name).name)
    ClipTokenizer().write(folder / "tokenizer.json")
    (folder / "metrics").mkdir()
    for name in METRICS:
        shutil.copyfile(experiment.paths[name], folder / "metrics" / experiment.paths[name].name)
    for name in ("LICENSE", "NOTICE"):
        shutil.copyfile(experiment.root / name, folder / name)
    where = '; sys_platform == "win32" or (sys_platform == "linux" and platform_machine == "x86_64")'
    pins = [f"{name}=={version(name)}{where if name == 'onnxruntime-qnn' else ''}" for name in _runs_on(manifest)]
    (folder / "requirements.txt").write_text("\n".join(pins) + "\n", encoding="utf-8")
    (folder / CARD).write_text(card(experiment, manifest, records), encoding="utf-8")


def _runs_on(manifest: Mapping[str, Any]) -> list[str]:
    return [name for name in RUNS_ON if name != "onnxruntime-qnn" or manifest["binaries"]]


def card(experiment: Experiment, manifest: Mapping[str, Any], records: Mapping[str, Any]) -> str:
    """Return the model card, Markdown: what it is, what it learnt from, what it scores and costs, and its limits."""
    score, latency, learnt, settings = records["score"], records["latency"], records["checkpoint"], experiment.settings
    samples = read_samples(experiment.paths["samples"])
    phrases = Counter(sample.split for sample in samples)
    pictures = Counter(split for split, _ in {(sample.split, sample.image) for sample in samples})
    source, latency_ms = latency_known_by(latency)
    low_ms, high_ms = (latency.get(f"latency_ms_{source}_{end}") for end in ("low", "high"))
    compared = (
        f"IoU of the masks of {each['runner']} with those of {each['reference']}: {each['iou_mean']} on average, "
        f"{each['iou_worst']} at worst, over {each['samples']} phrases."
        for each in (records["fidelity"]["binary"], records["fidelity"]["float32"])
        if each
    )
    binaries = (
        f"- {each['device']} ({each['chip']}): `{next(iter(each['wrappers'].values()))}`; its masks were "
        f"{'' if each['masks_compared'] else '**not** '}compared with the scored ones"
        for each in manifest["binaries"]
    )
    return Template((_PACKAGE / "release" / "card.md").read_text(encoding="utf-8")).substitute(
        name=manifest["name"],
        warning=f"\n> **Warning: {manifest['warning']}.**\n" if manifest["warning"] else "",
        commit=manifest["git_commit"],
        **{name: settings[name] for name in ("model", "res", "data")},
        parameters=f"{records['export']['parameters']:,}",
        precision=records["compiled"]["precision"],
        binaries="\n".join(binaries) or "No binary for an NPU: it runs on ONNX Runtime's CPU provider.",
        counts=", ".join(f"{phrases[each]:,} phrases on {pictures[each]:,} pictures of {each}" for each in phrases),
        **{name: learnt["params"].get(name) for name in ("steps", "init")},
        **{name: learnt[name] for name in ("init_sha256", "step")},
        **{name: f"{score[key]:.3f}" for name, key in _SCORES.items()},
        **{name: f"{score[name]:,}" for name in ("phrases", "pictures")},
        split=experiment.hub.split,
        scored_by=score["scored_by"],
        compared="\n".join(compared),
        latency=f"{latency_ms:.1f}",
        kind=SPELLED[str(source)],
        within="" if None in (low_ms, high_ms) else f", {low_ms:.1f} to {high_ms:.1f} ms",
        device=latency["host"]["cpu"] if source == CPU else latency["device"],
    )


def _pack(folder: Path, archive: Path, name: str) -> None:
    """Zip a folder under a name; the same files give the same bytes."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as packed:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                entry = zipfile.ZipInfo(f"{name}/{path.relative_to(folder).as_posix()}")  # of 1980: no clock in it
                entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
                with path.open("rb") as source, packed.open(entry, "w", force_zip64=True) as stream:
                    shutil.copyfileobj(source, stream, 1 << 20)
