"""Answer phrases about a picture with the model beside this file: on a Snapdragon's NPU, in its emulator, or on a CPU.

    python run.py picture.jpg "the red cup" "the plate below it"

Needs onnxruntime, numpy, pillow and tokenizers, and onnxruntime-qnn for the NPU and its emulator, in the versions of
requirements.txt. `--on npu` is for Windows on Snapdragon; `--on emulator` for Linux on x86-64, where an answer takes
seconds and says nothing of a device's speed; `--on cpu` for any machine. Without it: the NPU where there is one, and a
binary that was named or is the only one, else the CPU. `--check` verifies every file against manifest.json.
"""

import argparse
import hashlib
import html
import json
import platform
import sys
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MANIFEST = "manifest.json"
LONGEST_OVERLAY = 1600  # px
COMPILER = "onnxruntime_qnn"  # whose version a binary belongs to
PROVIDER = "QNN"
START_OF_TEXT, END_OF_TEXT = "<|startoftext|>", "<|endoftext|>"


def main(arguments: list[str] | None = None) -> int:
    """Answer, write and tell; the exit status is 1 after a mistake, which standard error explains in one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", nargs="?", type=Path, help="any format that Pillow reads")
    parser.add_argument("phrases", nargs="*", metavar="phrase", help='such as "the red cup on the left"')
    parser.add_argument("--on", choices=("npu", "emulator", "cpu"), help="what runs the model; see above")
    parser.add_argument("--device", help="whose binary to run, as manifest.json spells it; the first if not given")
    parser.add_argument("--out", type=Path, default=Path("predictions"), help="folder to write to (%(default)s)")
    parser.add_argument("--mask", action="store_true", help="write the mask too: a PNG of 0 and 255 at full size")
    parser.add_argument("--check", action="store_true", help="verify the files of this release, and do nothing else")
    options = parser.parse_args(arguments)
    try:
        if options.check:
            print(f"{HERE}: {check(HERE)} files are as manifest.json has them")
        else:
            _answer(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def check(folder: Path) -> int:
    """Hold every file of a release to its manifest, and return how many there are.

    Raises ValueError that lists the files that are missing, changed, or not in the manifest.
    """
    wanted = read_manifest(folder)["files"]
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    found = {name: path for name, path in found.items() if name != MANIFEST and "__pycache__" not in name}
    wrong = [f"{name} is missing" for name in wanted if name not in found]
    wrong += [f"{name} is not in {MANIFEST}" for name in found if name not in wanted]
    for name in wanted.keys() & found.keys():
        with found[name].open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != wanted[name]["sha256"]:
                wrong.append(f"{name} has other bytes")
    if wrong:
        raise ValueError(
            f"{folder}: got {'; '.join(sorted(wrong))}; wanted what {MANIFEST} lists: fetch the release again"
        )
    return len(wanted)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read what a release says of itself. Raises ValueError where it says nothing."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"{path}: no such file; wanted the folder of a release, whole")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: got text that is not JSON ({error}); fetch the release again") from error
    return manifest


def _answer(options: argparse.Namespace) -> None:
    if options.picture is None or not options.phrases:
        raise ValueError('got no picture or no phrase, wanted both: python run.py picture.jpg "the red cup"')
    if not options.picture.is_file():
        raise ValueError(f"{options.picture}: no such picture")
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out: got {options.out}, which is a file, wanted a folder to write to")
    manifest = read_manifest(HERE)
    texts = [clean(phrase) for phrase in options.phrases]
    import numpy as np
    import preprocess  # type: ignore[import-not-found]  # beside this file in a release
    from PIL import Image

    picture = preprocess.read_picture(options.picture.read_bytes(), str(options.picture))
    start = time.perf_counter()
    sessions, place = _open(manifest, options.on, options.device)
    print(f"{manifest['name']}, on {place}, opened in {time.perf_counter() - start:.2f} s")
    if manifest["warning"]:
        print(f"warning: {manifest['warning']}", file=sys.stderr)
    import overlay  # type: ignore[import-not-found]

    answers = _masks(manifest, sessions, picture, _encode(texts))
    for number, phrase in enumerate(options.phrases, start=1):
        start = time.perf_counter()
        mask, presence = next(answers)
        seconds = time.perf_counter() - start
        if mask is None:
            raise ValueError(f"{phrase!r}: got a mask with values that are no numbers; try --on cpu")
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / f"{options.picture.name}-{number}.png"
        shown = [picture, np.zeros_like(mask), mask]
        if max(mask.shape) > LONGEST_OVERLAY:
            shown = list(overlay.shrink(*shown, LONGEST_OVERLAY))
        Image.fromarray(overlay.overlay(*shown)).save(path)
        if options.mask:
            Image.fromarray(mask.astype(np.uint8) * 255).save(path.with_suffix(".mask.png"))
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        where = "nothing found"
        if len(rows):
            where = f"box {columns[0]},{rows[0]} to {columns[-1] + 1},{rows[-1] + 1} px"
        where += "" if presence is None else f", score {presence:.2f}"
        pixels = np.count_nonzero(mask)
        print(f'  "{phrase}": {pixels:,} px ({100 * pixels / mask.size:.1f} %), {where}, {seconds:.2f} s -> {path}')


def _masks(manifest: dict[str, Any], sessions: dict[str, Any], picture: Any, tokens: Any) -> Iterator[Any]:
    """Yield of each phrase its mask, bool [h, w], or None where it is no numbers, and its score or None.

    picture: uint8 RGB [h, w, 3]; tokens: int32 [N, 2, 77]. Of three graphs the picture's runs once.
    """
    import numpy as np
    import preprocess

    size = picture.shape[:2]
    if "model" in sessions:
        canvas = preprocess.picture_to_canvas(picture)[None].astype(np.float32)
        for row in tokens:
            (made,) = sessions["model"].run(["pred_mask"], {"image_input": canvas, "text_input": row[:, None]})
            yield (preprocess.mask_from_canvas(made > 0.5, *size) if np.isfinite(made).all() else None), None
        return
    square = preprocess.picture_to_square(picture, manifest["res"])[None]
    features = _run(sessions["picture"], {"picture": square})
    for row in tokens:
        made = _run(sessions["decoder"], {**features, **_run(sessions["phrase"], {"phrase": row[:1]})})
        logits, presence = made["mask_logits"], made.get("presence")
        mask = preprocess.logits_to_mask(logits[0], manifest["res"], manifest["canvas_rule"], *size)
        yield (mask if np.isfinite(logits).all() else None), None if presence is None else float(presence.item())


def _run(session: Any, feed: dict[str, Any]) -> dict[str, Any]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def clean(phrase: str) -> str:
    """Prepare a phrase as in training: entities undone, quotes straight, lower case, single spaces, a "." at its end.

    Raises ValueError where no letter, digit or symbol is left, or where it spells out a token of the tokenizer's own.
    """
    straight = str.maketrans("\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f", "''''\"\"\"\"")
    text = unicodedata.normalize("NFC", html.unescape(html.unescape(phrase))).translate(straight)
    text = " ".join(text.split()).lower()
    kinds = {unicodedata.category(character) for character in text}
    if "Cs" in kinds or not any(kind[0] in "LNS" for kind in kinds):
        raise ValueError(f"got the phrase {phrase!r:.80}, wanted at least one word: letters, digits or symbols")
    if START_OF_TEXT in text or END_OF_TEXT in text:
        raise ValueError(f"got the phrase {phrase!r:.80}, wanted none of the tokenizer's own names in it")
    return text if text.endswith(".") else text + "."


def _encode(texts: list[str]) -> Any:
    """Return int32 [N, 2, 77]: ids, and 1 up to the end of the text. What does not fit is cut, with a warning."""
    import numpy as np
    from tokenizers import Tokenizer

    encoded = Tokenizer.from_file(str(HERE / "tokenizer.json")).encode_batch(texts)
    for text, each in zip(texts, encoded, strict=True):
        if each.overflowing:
            print(f"warning: cut a phrase of more than {len(each.ids) - 2} tokens: {text:.60}...", file=sys.stderr)
    return np.array([[each.ids, each.attention_mask] for each in encoded], np.int32)


def _open(manifest: dict[str, Any], on: str | None, device: str | None) -> tuple[dict[str, Any], str]:
    """Return ONNX Runtime's session of each graph, and where they run, for people. Raises ValueError if they cannot."""
    import onnxruntime as ort

    binaries = {each["device"]: each for each in manifest["binaries"]}
    if device is not None and device not in binaries:
        held = ", ".join(map(repr, binaries)) or "none"
        raise ValueError(f"--device: got {device!r}, which this release was not compiled for; it has {held}")
    on_snapdragon = platform.system() == "Windows" and platform.machine().lower() == "arm64"
    if on is None:
        on = "npu" if on_snapdragon and (device is not None or len(binaries) == 1) else "cpu"
    if on == "cpu":
        files, cpu = manifest["graphs"].items(), ["CPUExecutionProvider"]
        options = ort.SessionOptions()
        options.add_session_config_entry("session.x64quantprecision", "1")  # 8-bit sums overflow on older processors
        return {
            name: ort.InferenceSession(str(HERE / file), options, providers=cpu) for name, file in files
        }, "this machine's CPU"
    if on == "npu" and not on_snapdragon:
        raise ValueError(
            f"--on npu: got {platform.system()} on {platform.machine()}, wanted Windows on Snapdragon (arm64); "
            "`--on cpu` runs anywhere, `--on emulator` on Linux (x86-64)"
        )
    if not binaries:
        raise ValueError(f"--on {on}: this release holds no binary for an NPU; `--on cpu` runs anywhere")
    binary = binaries[device] if device is not None else next(iter(binaries.values()))
    options = _qnn_options(ort, manifest, binary, on)
    sessions = {name: ort.InferenceSession(str(HERE / file), options) for name, file in binary["wrappers"].items()}
    return sessions, f"the NPU ({binary['device']})" if on == "npu" else f"an emulated NPU ({binary['device']})"


def _qnn_options(ort: Any, manifest: dict[str, Any], binary: dict[str, Any], on: str) -> Any:
    wanted = manifest["tool_versions"][COMPILER]
    try:
        import onnxruntime_qnn
    except ImportError as error:
        raise ValueError(
            f"--on {on}: got no onnxruntime-qnn, wanted {wanted}: python -m pip install onnxruntime-qnn=={wanted}, or "
            "`--on cpu`"
        ) from error
    if onnxruntime_qnn.__version__ != wanted:
        raise ValueError(
            f"--on {on}: got onnxruntime-qnn {onnxruntime_qnn.__version__}, and a binary compiled by {wanted}: "
            f"python -m pip install onnxruntime-qnn=={wanted}, or `--on cpu`"
        )
    backend = Path(onnxruntime_qnn.get_qnn_htp_path())
    if not backend.is_file():
        raise ValueError(
            f"--on {on}: the onnxruntime-qnn of this system has no library for it; `--on cpu` runs anywhere"
        )
    ort.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
    devices = [each for each in ort.get_ep_devices() if each.ep_name == PROVIDER]
    npus = [each for each in devices if each.device.type == ort.OrtHardwareDeviceType.NPU]
    provider = {"backend_path": str(backend)}
    if on == "emulator":  # which chip to emulate; a device knows itself
        chip = {name: str(binary[name]) for name in ("htp_arch", "soc_model", "vtcm_mb")}
        provider |= {**chip, "enable_htp_fp16_precision": "1", "offload_graph_io_quantization": "0"}
    else:
        provider["htp_performance_mode"] = "burst"
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors: its warnings are about what this program does not use
    options.add_provider_for_devices(npus or devices, provider)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


if __name__ == "__main__":
    sys.exit(main())
