"""tokenize: every sample's phrase as CLIP ids and attention mask, int32 [samples, 2, 77]."""

from pathlib import Path

from promptseg.datasets.records import read_samples
from promptseg.datasets.tokenizer import ClipTokenizer, write_tokens
from stages import run_stage


def tokenize(samples: Path, tokens: Path) -> None:
    """See the module."""
    write_tokens(tokens, ClipTokenizer().encode_all([sample.phrase for sample in read_samples(samples)]))


if __name__ == "__main__":
    run_stage(tokenize, __doc__, "samples", "tokens")
