"""Read a pickle that holds plain containers, strings and numbers; refuse every other, before any of its code runs."""

import io
import pickle
import pickletools
from typing import Any, NoReturn

MEMO_OPCODES = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        """Refuse: plain values need no names from modules, and only such names let a pickle run code."""
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")


def load_plain_pickle(content: bytes, name: str, encoding: str) -> Any:
    """Return what `content` holds: dicts, lists, tuples, sets, strings, bytes, numbers, booleans and None.

    `encoding` ("ascii", "latin1", "bytes", ...) is that of strings written by Python 2. Raises ValueError, with `name`,
    for anything else, and for a pickle that is truncated or damaged.
    Source: docs.python.org/3/library/pickle.html, "Restricting Globals".
    """
    try:
        _check_memo(content)
        return _PlainUnpickler(io.BytesIO(content), encoding=encoding).load()
    except (pickle.UnpicklingError, EOFError) as error:
        problem = str(error)
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"  # what damaged bytes raise inside the unpickler
    raise ValueError(
        f"{name}: got a pickle that is damaged or not plain ({problem}), wanted containers, strings and numbers only; "
        "do not use it, fetch it again"
    )


def _check_memo(content: bytes) -> None:
    """Refuse five bytes that make the unpickler reserve 32 GiB: a memo number beyond what the content can fill."""
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in MEMO_OPCODES and int(argument or 0) > len(content):
            raise pickle.UnpicklingError(f"it asks for {argument:,} memo entries in {len(content):,} bytes")
