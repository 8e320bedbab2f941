"""Trust updates for sites that no medium may reach: a directory to copy, or codes to print."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Final, Literal

from bundler.committing import make_directory
from bundler.errors import PackError
from bundler.format import fsio
from bundler.format.chain import file_name
from bundler.format.errors import MediumError
from bundler.format.paper import DEFAULT_CHARACTERS, split
from bundler.format.update import encode_update
from bundler.format.volume import BUNDLES_DIRECTORY, ROOT_DIRECTORY, UPDATE_DIRECTORY
from bundler.rooting.folder import Roots

Picture = Literal["png", "svg"]
_SCALE: Final = 6
"""Pixels of one module: 0.5 mm at 300 dots per inch, which hand scanners read."""
_EXTRA: Final = "install satchel's extra packages: pip install satchel[connected]"


def finished(roots: Roots, *, since: int) -> dict[int, bytes]:
    """Version → envelope of every finished root after one.

    Raises:
        PackError: there is none, or the newest one is a draft.
    """
    if roots.draft is not None:
        raise PackError(
            f"{roots.path}: expected a complete root, found a draft of version "
            f"{roots.draft.root.version}",
            hint="satchel-bundle root show says which signatures it lacks",
        )
    found = {one.root.version: one.data for one in roots.chain if one.root.version > since}
    if not found:
        raise PackError(
            f"{roots.path}: expected a root after version {since}, found none",
            hint="a site pins its first root in person: satchel trust pin",
        )
    return found


def write_update(roots: Roots, out: Path) -> tuple[Path, int]:
    """Put the chain on a medium, read back; a chain that is there is replaced.

    Returns:
        the directory, and its bytes.

    Raises:
        PackError: nothing to carry, or the medium does not give back what was written.
        BundleError: it cannot be written.
    """
    directory = out / BUNDLES_DIRECTORY / UPDATE_DIRECTORY / ROOT_DIRECTORY
    found = finished(roots, since=0)
    make_directory(out, directory)
    for version, data in found.items():
        path = directory / file_name(version)
        fsio.atomic_write(path, data)
        with fsio.open_regular(path, size_bytes=len(data)) as file:
            fsio.drop_cache(file.fileno())
            if file.read() != data:
                raise PackError(f"{path}: the medium does not give back what was written to it")
    for path in (directory.parent, directory.parent.parent, out):
        fsio.fsync_dir(path)
    return directory, sum(map(len, found.values()))


def texts_of(roots: Roots, *, since: int, characters: int = DEFAULT_CHARACTERS) -> tuple[str, ...]:
    """The texts of the codes.

    Args:
        roots: where the chain is.
        since: the version that the site has.
        characters: most characters of one code.

    Raises:
        PackError: nothing to carry.
        FormatError: it does not fit.
    """
    return split(encode_update(finished(roots, since=since)), characters=characters)


def drawn(text: str) -> str:
    """A code in half blocks, for a terminal of light on dark."""
    out = io.StringIO()
    _code(text).terminal(out=out, compact=True)
    return out.getvalue()


def write_pictures(texts: tuple[str, ...], out: Path, kind: Picture) -> tuple[Path, ...]:
    """Write ``1-of-3.png`` and so on into a directory; other files there are left alone.

    Raises:
        PackError: one of the files exists, or the package that draws is not installed.
        MediumError: it cannot be written.
    """
    paths = tuple(out / f"{place}-of-{len(texts)}.{kind}" for place in range(1, len(texts) + 1))
    for path in paths:
        if path.exists() or path.is_symlink():
            raise PackError(f"{path}: expected no file, found one")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MediumError(f"{out}: {(error.strerror or 'unknown error').lower()}") from error
    for path, text in zip(paths, texts, strict=True):
        picture = io.BytesIO()
        _code(text).save(picture, kind=kind, scale=_SCALE)
        fsio.atomic_write(path, picture.getvalue())
    return paths


def _code(text: str) -> Any:
    try:
        import segno  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise PackError(
            "drawing codes needs segno, which is not installed; --as text does not", hint=_EXTRA
        ) from error
    return segno.make_qr(text, error="m", mode="alphanumeric", boost_error=False)
