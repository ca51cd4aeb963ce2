"""From annotated pictures, wherever they lie, to this project's records: all checked, then all written."""

import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Literal, Protocol

from tqdm import tqdm

from promptseg.datasets.archives import read_member, write_archive
from promptseg.datasets.records import SPLITS, PhraseKind, Picture, Rle, Sample, Split, write_records
from promptseg.datasets.tokenizer import clean_phrase
from promptseg.files import atomic_path
from promptseg.sources.checks import Mistakes, Stored, decode_all

PICTURES_PER_ARCHIVE = 2000
KEYWORD_WORDS = 2  # at most: "red car"
SHORT_WORDS = 5  # at most: "man in a blue shirt"


class PictureStore(Protocol):
    """Encoded pictures by their names, where they lie before they are repacked; `where` names the place in messages."""

    where: str
    names: frozenset[str]

    def read(self, name: str) -> bytes:
        """Return all of one of `names`. Raises ValueError where it is damaged. Threads may read side by side."""


class ArchiveStore:
    """The members of a zip archive below `prefix`."""

    def __init__(self, archive: zipfile.ZipFile, prefix: str) -> None:
        self.where = f"{archive.filename}"
        self._archive = archive
        self._prefix = prefix
        members = (name for name in archive.namelist() if name.startswith(prefix) and not name.endswith("/"))
        self.names = frozenset(name.removeprefix(prefix) for name in members)

    def read(self, name: str) -> bytes:
        """See PictureStore."""
        return read_member(self._archive, self._prefix + name)


class FileStore:
    """Files, each at its path by its name."""

    def __init__(self, where: str, paths: Mapping[str, Path]) -> None:
        self.where = where
        self._paths = paths
        self.names = frozenset(paths)

    @classmethod
    def of_folder(cls, folder: Path) -> "FileStore":
        """Return the store of all files below `folder`, named as they lie there."""
        paths = (path for path in folder.rglob("*") if path.is_file())
        return cls(str(folder), {path.relative_to(folder).as_posix(): path for path in paths})

    def read(self, name: str) -> bytes:
        """See PictureStore."""
        try:
            return self._paths[name].read_bytes()
        except OSError as error:
            raise ValueError(f"{self._paths[name]}: cannot be read ({error.strerror}); replace the file") from error


@dataclass(frozen=True)
class Marked:
    """One object of a picture: a key that no other of the picture has, its place in the user's file, and its mask.

    `mask` makes it from height and width; it may be empty, and raises ValueError for what is none.
    """

    key: int
    where: str
    mask: Callable[[int, int], Rle]


@dataclass(frozen=True)
class Phrases:
    """What is said of objects that make one mask together, each phrase with its sample's id.

    `where` is the place that messages name. `kind` None sorts each phrase by its words. Phrases of nothing, their mask
    being empty, are a mistake, or left out where `may_be_empty`; those of what a picture is known not to show are
    `absent`: no keys, and samples with an empty mask.
    """

    where: str
    keys: tuple[int, ...]
    worded: tuple[tuple[str, str], ...]
    kind: PhraseKind | None = None
    may_be_empty: bool = False
    absent: bool = False


@dataclass(frozen=True)
class Annotated:
    """One picture: where messages place it, its file in the source, its name in our archives, and what is said of it.

    `split` None leaves it to the shares. `claimed` is the (height, width) that the annotations say, None where they say
    none. They count pixels as the picture is `stored`, as it is `shown` (EXIF applied), or `either`: then their size
    tells, and where it cannot, as it is shown, as CVAT has it.
    """

    where: str
    file_name: str
    member: str
    split: Split | None
    claimed: tuple[int, int] | None
    frame: Literal["stored", "shown", "either"]
    objects: tuple[Marked, ...]
    phrases: tuple[Phrases, ...]


@dataclass(frozen=True)
class Rules:
    """How a source is judged: the shares of pictures that name no split, and what published data is forgiven.

    `published` data is as its authors left it, and cannot be corrected: what is wrong with it is left out, and told.
    `splits_share_pictures` by their authors' design.
    """

    origin: str
    val_share: float = 0.0
    test_share: float = 0.0
    published: bool = False
    splits_share_pictures: bool = False


@dataclass(frozen=True)
class Entry:
    """A picture to repack: its name in the source, and what is recorded of it."""

    file_name: str
    picture: Picture
    samples: tuple[Sample, ...]


def phrase_kind(phrase: str) -> PhraseKind:
    """Sort a phrase by its number of words: up to 2 make a keyword, up to 5 a short phrase, more a sentence."""
    words = len(phrase.split())
    if words <= KEYWORD_WORDS:
        return "keyword"
    return "short" if words <= SHORT_WORDS else "sentence"


def split_of(sha256: str, val_share: float, test_share: float) -> Split:
    """Return the split of a picture, which depends on nothing but its bytes' sha256 (hexadecimal) and the shares.

    So a picture stays in its split when others come and go, or when it is renamed, and copies share one.
    """
    place = int(sha256[:16], 16) / 2**64
    if place < test_share:
        return "test"
    return "val" if place < test_share + val_share else "train"


def assemble(annotated: Sequence[Annotated], store: PictureStore, rules: Rules, mistakes: Mistakes) -> list[Entry]:
    """Check pictures, masks, phrases and splits; return the entries by split, in the order given.

    Every picture is decoded whole; sizes and masks are those after EXIF orientation; a picture's objects are all its
    masks, crowds included, each once. What is wrong is noted, and left out of the result.
    """
    present = [one for one in annotated if one.file_name in store.names]
    decoded = decode_all((one.file_name for one in present), store.read)
    fine: list[tuple[Annotated, Stored]] = []
    for one in annotated:
        stored = decoded.get(one.file_name)
        if isinstance(stored, Stored):
            fine.append((one, stored))
        else:
            missing = f"got {one.file_name!r}, which is not in {store.where}; correct the name, or add the picture"
            mistakes.add(one.where, f"image: {stored or missing}")
    splits = _splits(fine, rules, mistakes)
    stored_frames = any(_frame(one, stored) == "stored" for one, stored in fine if one.frame == "either")
    number: Counter[Split] = Counter()
    entries = []
    in_order = sorted(
        ((splits[at], *fine[at]) for at in splits), key=lambda each: SPLITS.index(each[0])
    )  # stable: within a split, as they come
    for split, one, stored in tqdm(in_order, desc="checking masks", unit="picture"):
        image = f"{split}-{number[split] // PICTURES_PER_ARCHIVE:03d}.zip/{one.member}"
        masks = _masks(one, stored, stored_frames, mistakes)
        entry = _entry(one, split, image, stored, masks, rules, mistakes)
        if entry.samples:
            number[split] += 1
            entries.append(entry)
    for sample_id, times in Counter(sample.sample_id for entry in entries for sample in entry.samples).items():
        if times > 1:
            mistakes.add(
                rules.origin, f"got the sample {sample_id!r} {times} times, wanted distinct ids and attributes"
            )
    if not mistakes.found:
        _check_every_split(entries, rules, mistakes)
    return entries


def write_dataset(contents: Iterable[tuple[bytes, Entry]], images: Path, samples: Path, objects: Path) -> None:
    """Write the folder of archives `images`, and the records `samples` (one a phrase) and `objects`; all or none.

    `contents` are encoded pictures, copied byte for byte, each with its entry, those of an archive together.
    """
    entries: list[Entry] = []

    def members(group: Iterable[tuple[bytes, Entry]]) -> Iterator[tuple[str, bytes]]:
        for encoded, entry in group:
            entries.append(entry)
            yield entry.picture.image.partition("/")[2], encoded

    with atomic_path(images) as folder, atomic_path(samples) as samples_path, atomic_path(objects) as objects_path:
        folder.mkdir()
        for archive, group in groupby(contents, key=lambda each: each[1].picture.image.partition("/")[0]):
            write_archive(folder / archive, members(group))
        write_records(samples_path, (sample for entry in entries for sample in entry.samples))
        write_records(objects_path, (entry.picture for entry in entries))


def _splits(fine: list[tuple[Annotated, Stored]], rules: Rules, mistakes: Mistakes) -> dict[int, Split]:
    """Return the split of each picture, by its place in `fine`; byte for byte the same pictures share one."""
    copies: dict[str, list[int]] = defaultdict(list)
    for at, (_, stored) in enumerate(fine):
        copies[stored.sha256].append(at)
    splits: dict[int, Split] = {}
    for sha256, group in copies.items():
        named = {split: at for at in reversed(group) if (split := fine[at][0].split) is not None}
        last = max(named, key=SPLITS.index) if named else split_of(sha256, rules.val_share, rules.test_share)
        for at in group:
            one = fine[at][0]
            splits[at] = one.split or last
            if splits[at] == last or rules.splits_share_pictures:
                continue
            kept = fine[named[last]][0]
            if rules.published:
                mistakes.left_out[f"of {splits[at]}: byte for byte a picture of {last}"].append(one.where)
                del splits[at]
            else:
                mistakes.add(
                    one.where,
                    f"split: got {one.member!r} in {splits[at]} and {kept.member!r}, byte for byte the same, in {last} "
                    f"({kept.where}), wanted one split a picture: scores would be of pictures trained on",
                )
    return dict(sorted(splits.items()))


def _frame(one: Annotated, stored: Stored) -> Literal["stored", "shown", "unknown", "neither"]:
    """Return how annotations count a picture's pixels, as far as its size tells."""
    as_stored = one.claimed in (None, (stored.height, stored.width))
    as_shown = one.claimed in (None, stored.shown)
    if as_stored and as_shown:
        return "unknown"
    return "stored" if as_stored else "shown" if as_shown else "neither"


def _masks(one: Annotated, stored: Stored, stored_frames: bool, mistakes: Mistakes) -> dict[int, Rle]:
    """Return the masks by key, turned as the picture is shown; the others are noted."""
    told = _frame(one, stored)
    frame = one.frame if one.frame != "either" else "stored" if told == "stored" else "shown"
    if told not in ("unknown", frame):
        height, width = stored.shown if frame != "stored" else (stored.height, stored.width)
        got = f"{one.claimed[1]}x{one.claimed[0]}" if one.claimed else "none"
        as_seen = "is stored" if frame == "stored" else "is shown (EXIF)"
        mistakes.add(one.where, f"width, height: got {got}, wanted {width}x{height} px as the picture {as_seen}")
        return {}
    if one.frame == "either" and told == "unknown" and stored_frames and stored.orientation > 1:
        mistakes.add(
            one.where,
            f"got EXIF orientation {stored.orientation}, and other pictures annotated as they are stored: does this "
            "mask count pixels as shown or as stored?; store pictures upright, and export again",
        )
        return {}
    height, width = (stored.height, stored.width) if frame == "stored" else stored.shown
    masks = {}
    for each in one.objects:
        try:
            mask = each.mask(height, width)
        except ValueError as error:
            mistakes.add(each.where, f"mask: {error}")
            continue
        turned = frame == "stored" and stored.orientation > 1
        masks[each.key] = Rle.from_mask(stored.turn(mask.to_mask())) if turned else mask
    return masks


def _entry(
    one: Annotated, split: Split, image: str, stored: Stored, masks: dict[int, Rle], rules: Rules, mistakes: Mistakes
) -> Entry:
    height, width = stored.shown
    samples = []
    for said in _meaning_one(one, rules, mistakes):
        if not all(key in masks for key in said.keys):
            continue  # its mistake is noted
        mask = Rle.united([masks[key] for key in said.keys]) if said.keys else Rle.empty(height, width)
        if not mask.area and not said.may_be_empty and not said.absent:
            mistakes.add(said.where, "mask: got one that covers no pixel, wanted at least one; leave it out")
        elif mask.area or said.absent:
            samples += [
                Sample(sample_id, split, image, height, width, phrase, said.kind or phrase_kind(phrase), mask)
                for sample_id, phrase in said.worded
            ]
    objects = tuple(dict.fromkeys(mask for mask in masks.values() if mask.area))
    return Entry(one.file_name, Picture(image, split, height, width, objects), tuple(samples))


def _meaning_one(one: Annotated, rules: Rules, mistakes: Mistakes) -> list[Phrases]:
    """Return what is said of a picture without the phrases that mean two of its objects; those are noted."""
    first: dict[str, Phrases] = {}
    again: set[str] = set()
    for said in one.phrases:
        for _, phrase in said.worded:
            asked = clean_phrase(phrase)
            earlier = first.setdefault(asked, said)
            if earlier.keys == said.keys:
                continue
            again.add(asked)
            if rules.published:
                mistakes.left_out["a phrase that means two objects of its picture"].append(f"{said.where}: {phrase!r}")
            else:
                mistakes.add(
                    said.where,
                    f"phrase: got {phrase!r} of {one.member!r} again, as in {earlier.where}; a phrase means one object",
                )
    if not again:
        return list(one.phrases)
    return [
        replace(said, worded=tuple(each for each in said.worded if clean_phrase(each[1]) not in again))
        for said in one.phrases
    ]


def _check_every_split(entries: list[Entry], rules: Rules, mistakes: Mistakes) -> None:
    phrases = Counter(sample.split for entry in entries for sample in entry.samples)
    empty = [split for split in SPLITS if not phrases[split]]
    if empty:
        mistakes.add(
            rules.origin,
            f"got no phrase in {' and '.join(empty)}, of {len(entries)} pictures with phrases, wanted some in each of "
            f"{', '.join(SPLITS)}; name splits, change `val_share` and `test_share`, or add pictures",
        )
