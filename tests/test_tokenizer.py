"""The tokenizer against CLIP's published ids and against a slow byte-pair encoding written from its definition."""

import hashlib
import html
import json
import logging
import random
import re
import subprocess
import sys
import unicodedata
from itertools import pairwise
from pathlib import Path

import ftfy
import numpy as np
import pytest
import regex
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from promptseg.datasets.tokenizer import (
    CONTEXT_LENGTH,
    END_OF_TEXT,
    VOCABULARY,
    ClipTokenizer,
    clean_phrase,
    read_tokens,
    write_tokens,
)
from promptseg.files import sha256_of

TOKENIZER = ClipTokenizer()
CAT = [49406, 320, 1125, 539, 320, 2368, 269, 49407]


def bytes_to_unicode() -> dict[int, str]:
    """Printable bytes stand for themselves, the others for the code points from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


START_OF_TEXT = 49406
BYTE_NAMES = bytes_to_unicode()
RANKS = {
    tuple(line.split()): rank
    for rank, line in enumerate((VOCABULARY / "merges.txt").read_text(encoding="utf-8").splitlines()[1:])
}
IDS = json.loads((VOCABULARY / "vocab.json").read_text(encoding="utf-8"))
WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")


def slow_ids(phrase: str) -> list[int]:
    """Merge the best-ranked pair, again and again, word by word."""
    text = " ".join(html.unescape(html.unescape(ftfy.fix_text(phrase))).split()).lower()
    ids = []
    for word in WORDS.findall(text if text.endswith(".") else text + "."):
        parts = [BYTE_NAMES[byte] for byte in word.encode("utf-8")]
        parts[-1] += "</w>"
        while pairs := [(RANKS[pair], at) for at, pair in enumerate(pairwise(parts)) if pair in RANKS]:
            at = min(pairs)[1]
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        ids += [IDS[part] for part in parts]
    return [START_OF_TEXT, *ids[: CONTEXT_LENGTH - 2], END_OF_TEXT]


def ids_of(phrase: str) -> list[int]:
    ids, mask = TOKENIZER.encode(phrase)[:, 0]
    return ids[: mask.sum()].tolist()


def test_published_ids() -> None:
    tokens = TOKENIZER.encode("a photo of a cat.")
    assert tokens.shape == (2, 1, 77)
    assert tokens.dtype == np.int32
    assert tokens[0, 0].tolist() == CAT + [END_OF_TEXT] * 69
    assert tokens[1, 0].tolist() == [1] * 8 + [0] * 69


@pytest.mark.parametrize(
    "phrase", ["a photo of a cat", " A  photo\tof a CAT. ", "a photo of a cat．", "ａ photo of a cat"]
)
def test_cleaning_leads_to_the_same_ids(phrase: str) -> None:
    assert ids_of(phrase) == CAT


def test_curly_quotes_and_entities_are_undone() -> None:
    assert ids_of("the man’s “red” hat") == ids_of('the man\'s "red" hat')
    assert ids_of("salt &amp;amp; pepper") == ids_of("salt & pepper")


def test_chinese_is_encoded_by_bytes() -> None:
    assert ids_of("红色的猫") == slow_ids("红色的猫")
    assert ids_of("红色的猫") == [49406, 163, 118, 95, 164, 231, 110, 163, 248, 226, 163, 234, 360, 269, 49407]


def test_a_long_phrase_keeps_the_end_and_warns(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tokens = TOKENIZER.encode("dog " * 500)
    assert "cut a phrase of more than 75 tokens: dog dog" in caplog.text
    assert tokens[0, 0, -1] == END_OF_TEXT
    assert (tokens[0, 0, 1:-1] == 1929).all()
    assert tokens[1].sum() == 77


def test_a_phrase_that_just_fits_is_not_cut(caplog: pytest.LogCaptureFixture) -> None:
    assert ids_of("dog " * 74)[-2:] == [269, END_OF_TEXT]
    assert not caplog.text


NOT_A_WORD = ["", " \n\t", ".", " ... ", "…", "?", "&nbsp;", "&#8203;", "\x00", "\u3000", "\u200b.", "\ufeff", "\u0301"]


@pytest.mark.parametrize("phrase", NOT_A_WORD)
def test_a_phrase_without_a_word_is_refused(phrase: str) -> None:
    with pytest.raises(ValueError, match="wanted at least one word"):
        TOKENIZER.encode(phrase)


@pytest.mark.parametrize("phrase", ["the cup \ud83d", "\udc00"])
def test_half_an_emoji_is_refused(phrase: str) -> None:
    with pytest.raises(ValueError, match="wanted whole characters"):
        TOKENIZER.encode(phrase)


@pytest.mark.parametrize("phrase", ["<|endoftext|> the cup", "the &lt;|StartOfText|&gt;"])
def test_the_name_of_a_special_token_is_refused(phrase: str) -> None:
    """The network reads at the first end of text: what follows one that is spelled out would say nothing."""
    with pytest.raises(ValueError, match="wanted none of the tokenizer's own"):
        TOKENIZER.encode(phrase)


@pytest.mark.parametrize("phrase", ["🙂", "7", "红", "+", "№ 5"])
def test_a_letter_a_digit_or_a_symbol_is_a_word(phrase: str) -> None:
    assert ids_of(phrase) == slow_ids(phrase)


def test_ends_and_lengths_are_written_once() -> None:
    """The network's copies are its configuration: the last id of its vocabulary, and its context's length."""
    found = [
        f"{path.name}:{number}"
        for path in (VOCABULARY.parents[1]).rglob("*.py")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if re.search(r"\b49407\b|^[A-Z_]+ = 77\b", line)
    ]
    assert len(found) == 2, found


def test_all_equals_one_by_one() -> None:
    phrases = ["a cat", "the very small dog behind the fence", "dog " * 100]
    together = TOKENIZER.encode_all(phrases)
    assert together.shape == (3, 2, 77)
    assert (together == np.stack([TOKENIZER.encode(phrase)[:, 0] for phrase in phrases])).all()
    assert TOKENIZER.encode_all([]).shape == (0, 2, 77)


def between(*ranges: tuple[int, int]) -> str:
    """All characters of some ranges."""
    return "".join(chr(point) for first, end in ranges for point in range(first, end))


ALPHABETS = {
    "english": ("abcdefghijklmnopqrstuvwxyz  ", "1036487e"),
    "typed": ("the small dog's 'VE 123 café 猫 .,-!? ‘’“” \u3000", "5e5a2f53"),
    "latin": (between((0x21, 0x180)) + "    ", "eea803da"),
    "greek, cyrillic, hebrew": (between((0x391, 0x3A1), (0x400, 0x460), (0x5D0, 0x5EA)) + "   ", "9bf32223"),
    "chinese, emoji, joiners": (between((0x4E00, 0x4F00), (0x1F600, 0x1F650)) + "  \u200d\ufe0f", "932b7531"),
}


def random_phrases(alphabet: str, seed: int) -> list[str]:
    """1,000 strings of 1 to 60 characters, one in twenty of up to 400; `random()` is alike in every Python."""
    rng = random.Random(seed)
    lengths = [1 + int(rng.random() * (400 if rng.random() < 0.05 else 60)) for _ in range(1000)]
    drawn = ("".join(alphabet[int(rng.random() * len(alphabet))] for _ in range(length)) for length in lengths)
    return [f"a {phrase}" for phrase in drawn]


@pytest.mark.parametrize("name", ALPHABETS)
def test_ids_are_those_of_the_first_version(name: str) -> None:
    """Its own set-up of the byte-pair encoder agreed with transformers on 20,000 strings; these are its ids' sums."""
    alphabet, frozen = ALPHABETS[name]
    tokens = TOKENIZER.encode_all(random_phrases(alphabet, list(ALPHABETS).index(name)))
    assert tokens.shape == (1000, 2, 77)
    assert hashlib.sha256(tokens.astype("<i4").tobytes()).hexdigest()[:8] == frozen


# ftfy already composes accents; what an entity adds afterwards ("e&#769;") is outside the two libraries' agreement,
# and so are the names of special tokens. Unassigned code points are letters in one Unicode version, none in another.
texts = st.text(st.characters(exclude_categories=["Cs", "Cn"], exclude_characters="&<"), max_size=60) | st.text(
    st.sampled_from("the small dog's 'VE 123 café 猫 .,-!? ‘’“” \u3000"), max_size=60
)


@settings(max_examples=300, deadline=None)
@given(texts)
def test_agrees_with_the_slow_encoding(phrase: str) -> None:
    try:
        cleaned = clean_phrase(phrase)
    except ValueError:
        return
    assume(not any(unicodedata.category(character) == "Cn" for character in cleaned))  # ftfy can make them, too
    assert ids_of(phrase) == slow_ids(phrase)


def test_the_vocabulary_is_the_published_one() -> None:
    assert sha256_of(VOCABULARY / "vocab.json") == "5047b556ce86ccaf6aa22b3ffccfc52d391ea4accdab9c2f2407da5b742d4363"
    assert sha256_of(VOCABULARY / "merges.txt") == "9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a"


def test_the_library_is_imported_where_a_tokenizer_is_made() -> None:
    """It takes most of a second: whoever only reads tokens, or asks for help, does not pay for it."""
    code = (
        "import sys, promptseg.datasets.tokenizer, promptseg.commands.predict; sys.exit('transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(VOCABULARY.parents[2])})


def test_loading_opens_no_connection() -> None:
    code = (
        "import socket\n"
        "def refuse(*_): raise SystemExit('a connection was tried')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from promptseg.datasets.tokenizer import ClipTokenizer\n"
        "ClipTokenizer().encode('a cat')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(VOCABULARY.parents[2])})


TOKENS = np.arange(3 * 2 * 77, dtype=np.int32).reshape(3, 2, 77)


def test_a_round_trip_keeps_every_id_and_leaves_one_file(tmp_path: Path):
    write_tokens(tmp_path / "tokens.npy", TOKENS)
    assert (read_tokens(tmp_path / "tokens.npy", 3) == TOKENS).all()
    assert [path.name for path in tmp_path.iterdir()] == ["tokens.npy"]


def test_tokens_of_other_samples_are_refused(tmp_path: Path):
    write_tokens(tmp_path / "tokens.npy", TOKENS)
    with pytest.raises(ValueError, match="got 3 rows for 4 samples"):
        read_tokens(tmp_path / "tokens.npy", 4)


@pytest.mark.parametrize("length", [0, 9, 60, 700])
def test_a_truncated_file_is_refused(tmp_path: Path, length: int):
    path = tmp_path / "tokens.npy"
    write_tokens(path, TOKENS)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"tokens\.npy: got no array"):
        read_tokens(path, 3)


def test_a_pickled_array_is_refused(tmp_path: Path):
    np.save(tmp_path / "tokens.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="got no array"):
        read_tokens(tmp_path / "tokens.npy", 2)
