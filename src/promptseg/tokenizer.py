"""Phrase -> int32 [2, 1, 77]: the exact ids of CLIP's tokenizer, from a vocabulary on board; nothing is downloaded.

Text is cleaned as CLIP's own tokenizer does: ftfy, HTML entities undone twice, white space collapsed, lower case.
Source: github.com/openai/CLIP, clip/simple_tokenizer.py; the byte-pair encoding is transformers' CLIPTokenizer.
"""

import html
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
from numpy.typing import NDArray
from transformers import CLIPTokenizer

CONTEXT_LENGTH = 77
START_OF_TEXT = 49406
END_OF_TEXT = 49407  # pads, too
VOCABULARY = Path(__file__).parent / "vocabulary"

_log = logging.getLogger(__name__)


def clean_phrase(phrase: str) -> str:
    """Normalise a phrase and end it with a ".", which is appended to one that lacks it.

    Raises ValueError when nothing is left but white space and dots.
    """
    unescaped = html.unescape(html.unescape(ftfy.fix_text(phrase)))
    cleaned = " ".join(unescaped.split()).lower()
    if not cleaned.strip(" ."):
        raise ValueError(f"got the phrase {phrase!r}, wanted at least one word; give the sample a phrase")
    return cleaned if cleaned.endswith(".") else cleaned + "."


class ClipTokenizer:
    """CLIP's byte-pair encoding over `vocabulary/`."""

    def __init__(self) -> None:
        """Read the vocabulary. Raises OSError when a file of it is missing."""
        vocabulary = json.loads((VOCABULARY / "vocab.json").read_text(encoding="utf-8"))
        _version, *lines = (VOCABULARY / "merges.txt").read_text(encoding="utf-8").splitlines()
        merges: list[Any] = [tuple(line.split()) for line in lines]  # pairs, where the annotation there says str
        self._library = CLIPTokenizer(vocab=vocabulary, merges=merges)

    def encode(self, phrase: str) -> NDArray[np.int32]:
        """Return int32 [2, 1, 77]: [0] the ids (start, text, end, padded with the end), [1] 1 up to the first end.

        What does not fit is cut, with a warning; the last id is then still the end of text. Raises ValueError for an
        empty phrase.
        """
        return self.encode_all([phrase])[0][:, None, :]

    def encode_all(self, phrases: Sequence[str]) -> NDArray[np.int32]:
        """Return int32 [N, 2, 77]: `encode` of each phrase; ValueError when one is empty."""
        tokens = np.zeros((len(phrases), 2, CONTEXT_LENGTH), np.int32)
        tokens[:, 0] = END_OF_TEXT
        if not phrases:
            return tokens
        cleaned = [clean_phrase(phrase) for phrase in phrases]
        texts = self._library(cleaned, add_special_tokens=False, verbose=False)["input_ids"]
        for row, phrase, text in zip(tokens, phrases, texts, strict=True):
            if len(text) > CONTEXT_LENGTH - 2:
                _log.warning("cut a phrase of %d tokens to %d: %.60s...", len(text), CONTEXT_LENGTH - 2, phrase)
            ids = [START_OF_TEXT, *text[: CONTEXT_LENGTH - 2], END_OF_TEXT]
            row[0, : len(ids)] = ids
            row[1, : len(ids)] = 1
        return tokens
