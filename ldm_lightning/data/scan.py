"""Looking at every picture once before training: is it whole, how large is it, what is the hash of its content.

A damaged file is found in minutes here, or after days by a crashed worker. The findings are kept in the cache folder
and reused for every picture whose stamp (size and modification time of a file) has not changed.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ldm_lightning.artifact import replace_file
from ldm_lightning.data.cache import cache_folder
from ldm_lightning.data.levels import Levels
from ldm_lightning.data.picture import open_picture
from ldm_lightning.errors import UserError

__all__ = ["Finding", "content_hash", "report", "scan", "select"]

_BLOCK = 1024
_NAMED = 5


class Finding(NamedTuple):
    """What was found in one picture.

    Hex hash of its bytes, upright size in pixels, what is wrong, if anything, its depth in bits (as of
    `ldm_lightning.data.levels.Levels`, or 8) and its extreme values.
    """

    hash: str = ""
    width: int = 0
    height: int = 0
    error: str = ""
    depth: int = 0
    low: float = 0.0
    high: float = 0.0


def content_hash(content: bytes) -> bytes:
    """Return 16 bytes of BLAKE2b."""
    return blake2b(content, digest_size=16).digest()


def _examine(read: Callable[[], bytes]) -> Finding:
    try:
        content = read()
        picture = open_picture(content)
    except Exception as error:  # decoders raise anything at all on damaged files
        return Finding(error=" ".join(str(error).split()) or type(error).__name__)
    levels = picture if isinstance(picture, Levels) else Levels(np.asarray(picture), 8)
    extremes = float(levels.values.min()), float(levels.values.max())
    return Finding(content_hash(content).hex(), *picture.size, "", levels.depth, *extremes)


def _load(path: Path) -> dict[str, tuple[str, Finding]]:
    """Findings by picture name, each with the stamp it holds for; empty when there are none to be trusted."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {name: (stamp, Finding(*finding)) for name, (stamp, finding) in entries.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def scan(names: Sequence[str], stamps: Sequence[str], read: Callable[[int], bytes], collection: str) -> list[Finding]:
    """Read and decode every picture, in threads, with a progress bar; known findings are reused.

    Args:
        names: one distinct name for each picture.
        stamps: one string for each picture which changes whenever its content may have changed.
        read: returns the bytes of picture ``i``.
        collection: identity of the whole, which names its file in the cache.

    Returns:
        One finding for each picture.
    """
    path = cache_folder() / "scans" / f"{content_hash(os.fsencode(collection)).hex()}.json"
    known = _load(path)
    findings = {
        name: known[name][1]
        for name, stamp in zip(names, stamps, strict=True)
        # What could not be read is tried again: a network disk may have been away. No depth: an older version looked.
        if name in known and known[name][0] == stamp and not known[name][1].error and known[name][1].depth
    }
    new = [i for i, name in enumerate(names) if name not in findings]
    if not new:
        return [findings[name] for name in names]
    with ThreadPoolExecutor() as pool, tqdm(total=len(new), desc="checking pictures", unit="") as bar:
        for first in range(0, len(new), _BLOCK):
            block = new[first : first + _BLOCK]
            for i, finding in zip(block, pool.map(_examine, [lambda i=i: read(i) for i in block]), strict=True):
                findings[names[i]] = finding
                bar.update()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        entries = {name: (stamp, findings[name]) for name, stamp in zip(names, stamps, strict=True)}
        replace_file(path, json.dumps(entries).encode())
    except OSError as error:
        warnings.warn(f"the findings about {collection} could not be kept for the next start: {error}", stacklevel=2)
    return [findings[name] for name in names]


def report(
    collection: str,
    total: int,
    bad: Sequence[str],
    max_bad_fraction: float,
    *,
    what: str,
    mend: str,
    then: str = "they are left out",
) -> None:
    """Warn about pictures with a fault, saying what becomes of them, or refuse when they are too many.

    Raises:
        UserError: they are more than a share of ``max_bad_fraction``, which allows one unless it is 0, or all.
    """
    if not bad:
        return
    listed = ", ".join(bad[:_NAMED]) + (", ..." if len(bad) > _NAMED else "")
    message = f"{collection}: {len(bad)} of {total} pictures {what}: {listed}"
    # In a small collection one bad picture is a large share, but no reason to stop.
    allowed = max(1.0, max_bad_fraction * total) if max_bad_fraction > 0 else 0.0
    if len(bad) > allowed or len(bad) == total:
        raise UserError(f"{message}; {mend}")
    warnings.warn(f"{message}; {then}", stacklevel=2)


def select(
    names: Sequence[str], findings: Sequence[Finding], collection: str, min_size: int, max_bad_fraction: float
) -> list[int]:
    """Return the positions of the usable pictures; the others are counted and named in a warning.

    Args:
        names: names of the pictures for messages.
        findings: what `scan` found in them.
        collection: name of the whole for messages.
        min_size: shortest side in pixels that is of use.
        max_bad_fraction: largest share that may be unreadable, and largest share that may be too small; unless it is
            0, one picture may always be.

    Raises:
        UserError: a share is exceeded, or nothing is left.
    """
    total = len(names)
    bad = [f"{name} ({finding.error})" for name, finding in zip(names, findings, strict=True) if finding.error]
    mend = "remove them or raise data.source.max_bad_fraction"
    report(collection, total, bad, max_bad_fraction, what="cannot be read", mend=mend)
    sides = {i: min(finding.width, finding.height) for i, finding in enumerate(findings) if not finding.error}
    small = [f"{names[i]} ({findings[i].width}x{findings[i].height})" for i, side in sides.items() if side < min_size]
    mend = (
        f"the smallest side is {min(sides.values())}: set data.transform.upscale=true, a smaller data.transform.size, "
        "or raise data.source.max_bad_fraction"
    )
    report(collection, total, small, max_bad_fraction, what=f"are smaller than {min_size} pixels", mend=mend)
    return [i for i, side in sides.items() if side >= min_size]
