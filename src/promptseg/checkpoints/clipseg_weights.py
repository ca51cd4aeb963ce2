"""Published CLIPSeg weights, by transformers' own loader: a name on Hugging Face's hub, or a folder in its layout.

Strict: every published key is kept under a name of ours or left out for a stated reason, and the file's settings must
be those that the network here computes with.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from promptseg.checkpoints.checkpoint import DAMAGED, values_sha256
from promptseg.files import read_json
from promptseg.networks.clipseg.model import BlockConfig, ClipSeg, ClipSegConfig

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and std, of RGB 0..1; CLIPSeg's own, too
LARGEST_ID = 2  # transformers' older word for "the text ends at its largest id", which is the vocabulary's last
PREFIXES = {
    "clip.vision_model.": "vision.",
    "clip.text_model.": "text.",
    "clip.text_projection.": "text_projection.",
    "decoder.": "decoder.",
}
POOLING = "pools pictures into one vector, which no mask depends on"
DROPPED = {
    "clip.logit_scale": POOLING,
    "clip.visual_projection.weight": POOLING,
    "clip.vision_model.post_layernorm.weight": POOLING,
    "clip.vision_model.post_layernorm.bias": POOLING,
    "clip.text_model.embeddings.position_ids": "counts positions; computed here",
    "clip.vision_model.embeddings.position_ids": "counts positions; computed here",
}
UNREAD_BLOCK = "a block behind the last that the decoder reads"


def load_clipseg(source: str) -> tuple[ClipSeg, dict[str, Any]]:
    """Build the network of a published CLIPSeg: float32, evaluation mode; and its ledger.

    source: a folder with config.json, model.safetensors and, for mean and std, preprocessor_config.json, or the name
    of such a thing on Hugging Face's hub, which transformers downloads once and keeps. Raises ValueError when it cannot
    be had, is of another kind, or lacks or has other weights than its configuration asks for.
    """
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation
    from transformers.utils import cached_file, logging

    if Path(source).exists() and not (Path(source) / CONFIG).is_file():
        raise ValueError(
            f"{source}: got no {CONFIG}, wanted a folder as Hugging Face's hub lays it out: {CONFIG}, "
            f"model.safetensors and {PREPROCESSOR}"
        )
    logging.set_verbosity_error()  # what it would warn of is an error here
    logging.disable_progress_bar()
    try:
        fields, _ = CLIPSegConfig.get_config_dict(source)
        if fields.get("model_type") != "clipseg":
            raise ValueError(f"{source}: got a model of type {fields.get('model_type')!r}, wanted 'clipseg'")
        config = CLIPSegConfig.from_dict(fields)
        load: Any = CLIPSegForImageSegmentation.from_pretrained  # its annotation has no loading information
        published, loading = load(
            source, config=config, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )  # other shapes are listed below, all of them
        beside = cached_file(source, PREPROCESSOR, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        raise ValueError(
            f"{source}: got no such model ({str(error).splitlines()[0]}); without the network, bring it as a folder: "
            f"where there is one, run `hf download {source} --local-dir clipseg`, copy the folder here, and set "
            "finetune.init and finetune.watch to it"
        ) from error
    except tuple({SafetensorError, *DAMAGED} - {ValueError}) as error:  # a ValueError says itself what is wrong
        raise ValueError(f"{source}: got a damaged file of weights ({error}); fetch or copy it again") from error
    faults = [
        f"{name.removesuffix('_keys')}: {', '.join(map(str, unaccounted))}"
        for name, keys in loading.items()
        if (unaccounted := [key for key in keys if key not in DROPPED])
    ]
    if faults:
        raise ValueError(f"{source}: got weights that do not fit the configuration beside them: {'; '.join(faults)}")
    mean, std = _mean_and_std(beside)
    ours = clipseg_config(source, config, mean, std)
    weights, ledger = convert_clipseg(published.state_dict(), ours)
    with torch.device("meta"):
        network = ClipSeg(ours)
    network.load_state_dict(weights, strict=True, assign=True)
    ledger["values_sha256"] = values_sha256(weights)
    ledger[PREPROCESSOR] = "missing: ImageNet's" if beside is None else "read"
    return network.eval(), ledger


def clipseg_config(source: str, config: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> ClipSegConfig:
    """Our configuration of transformers' `CLIPSegConfig`; mean and std are of RGB 0..1.

    Raises ValueError, with `source`, for a setting that the network here does not compute with.
    """
    vision, text = config.vision_config, config.text_config
    wanted = {
        "text_config.eos_token_id": (text.eos_token_id, (text.vocab_size - 1, LARGEST_ID)),
        "text_config.vocab_size": (text.vocab_size, (49408,)),
        "vision_config.num_channels": (vision.num_channels, (3,)),
        **{
            f"{name}.{key}": (getattr(part, key), values)
            for name, part in (("vision_config", vision), ("text_config", text))
            for key, values in (("hidden_act", ("quick_gelu",)), ("layer_norm_eps", (1e-5,)))
        },
    }
    wrong = [
        f"{key}: got {got!r}, wanted {' or '.join(map(repr, values))}"
        for key, (got, values) in wanted.items()
        if got not in values
    ]
    if wrong:
        raise ValueError(f"{source}: got a configuration that is not computed with here: {'; '.join(wrong)}")
    layers = tuple(config.extract_layers)
    r, g, b = (round(255 * value, 6) for value in mean)
    x, y, z = (round(255 * value, 6) for value in std)
    return ClipSegConfig(
        vision=BlockConfig(vision.hidden_size, vision.num_attention_heads, max(layers) + 1, vision.intermediate_size),
        text=BlockConfig(text.hidden_size, text.num_attention_heads, text.num_hidden_layers, text.intermediate_size),
        decoder=BlockConfig(
            config.reduce_dim, config.decoder_num_attention_heads, len(layers), config.decoder_intermediate_size
        ),
        patch=vision.patch_size,
        position_side=vision.image_size // vision.patch_size,
        phrase_dim=config.projection_dim,
        context_length=text.max_position_embeddings,
        vocab_size=text.vocab_size,
        extract_layers=layers,
        conditional_layer=config.conditional_layer,
        refined=config.use_complex_transposed_convolution,
        mean=(r, g, b),
        std=(x, y, z),
    )


def convert_clipseg(published: dict[str, Tensor], config: ClipSegConfig) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Published weights -> ours, and what became of every key: renamed, or dropped and why."""
    unread = tuple(f"clip.vision_model.encoder.layers.{index}." for index in range(config.vision.layers, 1000))
    renamed, dropped = {}, {}
    for key in published:
        if key in DROPPED:
            dropped[key] = DROPPED[key]
        elif key.startswith(unread):
            dropped[key] = UNREAD_BLOCK
        else:
            renamed[key] = next(new + key.removeprefix(old) for old, new in PREFIXES.items() if key.startswith(old))
    weights = {new: published[key] for key, new in renamed.items()}
    return weights, {"renamed": renamed, "dropped": dropped}


def _mean_and_std(beside: str | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if beside is None:
        return IMAGENET
    fields = read_json(Path(beside))
    return tuple(fields["image_mean"]), tuple(fields["image_std"])
