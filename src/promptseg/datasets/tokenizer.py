"""Phrase -> int32 [2, 1, 77]: the exact ids of CLIP's tokenizer, from a vocabulary on board; nothing is downloaded.

Text is cleaned as CLIP's own tokenizer does: ftfy, HTML entities undone twice, white space collapsed, lower case.
Source: github.com/openai/CLIP, clip/simple_tokenizer.py; the byte-pair encoding is the `tokenizers` library's, set up
as transformers' CLIPTokenizer sets it up. That wrapper is not used: it takes a second to import, this 20 ms.
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
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as InOrder

CONTEXT_LENGTH = 77
START_OF_TEXT = 49406
END_OF_TEXT = 49407  # pads, too
SPECIAL = ("<|startoftext|>", "<|endoftext|>")  # matched whole where a phrase spells them out, as CLIP does
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
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
    """CLIP's byte-pair encoding over `datasets/vocabulary/`."""

    def __init__(self) -> None:
        """Read the vocabulary. Raises OSError when a file of it is missing."""
        vocabulary = json.loads((VOCABULARY / "vocab.json").read_text(encoding="utf-8"))
        _version, *lines = (VOCABULARY / "merges.txt").read_text(encoding="utf-8").splitlines()
        merges: list[Any] = [tuple(line.split()) for line in lines]
        self._library = Tokenizer(BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token=SPECIAL[1]))
        self._library.normalizer = NFC()
        self._library.pre_tokenizer = InOrder([Split(Regex(WORDS), "removed", invert=True), ByteLevel(False)])
        self._library.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])

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
        encodings = self._library.encode_batch(cleaned, add_special_tokens=False)
        for row, phrase, text in zip(tokens, phrases, (encoding.ids for encoding in encodings), strict=True):
            if len(text) > CONTEXT_LENGTH - 2:
                _log.warning("cut a phrase of %d tokens to %d: %.60s...", len(text), CONTEXT_LENGTH - 2, phrase)
            ids = [START_OF_TEXT, *text[: CONTEXT_LENGTH - 2], END_OF_TEXT]
            row[0, : len(ids)] = ids
            row[1, : len(ids)] = 1
        return tokens
