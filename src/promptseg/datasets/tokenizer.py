"""Phrase -> int32 [2, 1, 77]: the exact ids of CLIP's tokenizer, from a vocabulary on board; nothing is downloaded.

Text is cleaned as CLIP's own tokenizer does: ftfy, HTML entities undone twice, white space collapsed, lower case
(github.com/openai/CLIP, clip/simple_tokenizer.py). transformers' tokenizer encodes, cuts and pads; it takes most of a
second to import, so it is imported where a tokenizer is made. `write_tokens` and `read_tokens` keep ids on disk.
"""

import html
import logging
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import ftfy
import numpy as np
from numpy.typing import NDArray

from promptseg.files import atomic_path

CONTEXT_LENGTH = 77  # CLIP's number of text tokens
END_OF_TEXT = 49407  # pads, too
SPECIAL = ("<|startoftext|>", "<|endoftext|>")
VOCABULARY = Path(__file__).parent / "vocabulary"

_log = logging.getLogger(__name__)


def clean_phrase(phrase: str) -> str:
    """Normalise a phrase and end it with a ".", which is appended to one that lacks it.

    Raises ValueError when no letter, digit or symbol is left, when half a character (a lone surrogate) is in it, or
    when it spells out the name of a special token, behind which the network would read nothing.
    """
    if any(unicodedata.category(character) == "Cs" for character in phrase):
        raise ValueError(f"got the phrase {phrase!r:.80}, wanted whole characters; half an emoji is left of one")
    unescaped = html.unescape(html.unescape(ftfy.fix_text(phrase)))
    cleaned = " ".join(unescaped.split()).lower()
    if not any(unicodedata.category(character)[0] in "LNS" for character in cleaned):
        raise ValueError(f"got the phrase {phrase!r:.80}, wanted at least one word: letters, digits or symbols")
    if any(token in cleaned for token in SPECIAL):
        raise ValueError(f"got the phrase {phrase!r:.80}, wanted none of the tokenizer's own {' and '.join(SPECIAL)}")
    return cleaned if cleaned.endswith(".") else cleaned + "."


class ClipTokenizer:
    """CLIP's byte-pair encoding over `datasets/vocabulary/`."""

    def __init__(self) -> None:
        """Read the vocabulary. Raises OSError when a file of it is missing."""
        from transformers import CLIPTokenizer

        vocabulary, merges = VOCABULARY / "vocab.json", VOCABULARY / "merges.txt"
        self._library = CLIPTokenizer(vocab=str(vocabulary), merges=str(merges), model_max_length=CONTEXT_LENGTH)

    def encode(self, phrase: str) -> NDArray[np.int32]:
        """Return int32 [2, 1, 77]: [0] the ids (start, text, end, padded with the end), [1] 1 up to the first end.

        What does not fit is cut, with a warning; the last id is then still the end of text. Raises ValueError for a
        phrase that `clean_phrase` refuses.
        """
        return self.encode_all([phrase])[0][:, None, :]

    def encode_all(self, phrases: Sequence[str]) -> NDArray[np.int32]:
        """Return int32 [N, 2, 77]: `encode` of each phrase; ValueError when one is refused."""
        if not phrases:
            return np.zeros((0, 2, CONTEXT_LENGTH), np.int32)
        cleaned = [clean_phrase(phrase) for phrase in phrases]
        encoded = self._library(cleaned, padding="max_length", truncation=True, return_tensors="np")
        for phrase, encoding in zip(phrases, encoded.encodings, strict=True):
            if encoding.overflowing:
                _log.warning("cut a phrase of more than %d tokens: %.60s...", CONTEXT_LENGTH - 2, phrase)
        return np.stack([encoded["input_ids"], encoded["attention_mask"]], 1).astype(np.int32)

    def write(self, path: Path) -> None:
        """Write the tokenizer as the library `tokenizers` reads it, cutting and padding to CONTEXT_LENGTH included.

        `clean_phrase` is not in it.
        """
        from tokenizers import Tokenizer

        copied = Tokenizer.from_str(self._library.backend_tokenizer.to_str())
        copied.enable_truncation(CONTEXT_LENGTH)
        copied.enable_padding(length=CONTEXT_LENGTH, pad_id=END_OF_TEXT, pad_token=SPECIAL[1])
        copied.save(str(path), pretty=False)


def write_tokens(path: Path, tokens: NDArray[np.int32]) -> None:
    """Write int32 [samples, 2, 77], row by row those of samples.jsonl, atomically, as .npy."""
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, tokens, allow_pickle=False)


def read_tokens(path: Path, samples: int) -> NDArray[np.int32]:
    """Read the array of `samples` samples. Raises ValueError when the file is damaged or has another number of rows."""
    try:
        with path.open("rb") as stream:
            tokens: NDArray[np.int32] = np.lib.format.read_array(stream, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: got no array of tokens ({error}); run `dvc repro tokenize`") from error
    if len(tokens) != samples:
        raise ValueError(f"{path}: got {len(tokens)} rows for {samples} samples; run `dvc repro tokenize`")
    return tokens
