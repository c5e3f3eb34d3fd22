"""Getting the files of a Debian package without installing it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from recipes.timit.corpus import CorpusError


def unpack(names: Sequence[str], *, work: Path, package: Path | None = None) -> Path:
    """Return a folder that holds the unpacked files of Debian packages (``usr/share/...``).

    Args:
        names: Debian package names.
        work: folder for the downloaded ``.deb`` files and for the unpacked tree, which are used again next
            time.
        package: where the packages are already: a ``.deb`` file, a folder with the ``.deb`` files, or a
            folder into which they were unpacked (``/`` if they are installed). None downloads them with
            ``apt-get download``, which needs neither root nor an installation, but a Debian (or a derivative)
            whose package lists are up to date.

    Raises:
        CorpusError: if a package is not there and cannot be downloaded or unpacked; the message says what to
        run.
    """
    if package is None:
        debs = [_download(name, work) for name in names]
    elif package.is_file():
        debs = [package]
    elif package.is_dir():
        debs = [deb for name in names for deb in sorted(package.glob(f"{name}_*.deb"))[-1:]]
        if not debs:
            return package
    else:
        raise CorpusError(f"{package} does not exist; give a .deb file or an unpacked package, or none to download it")
    return _extract(debs, work / "tree")


def _download(name: str, work: Path) -> Path:
    downloaded = sorted(work.glob(f"{name}_*.deb"))
    if downloaded:
        return downloaded[-1]
    by_hand = (
        f"On a Debian machine run `apt-get update` (as root) and `apt-get download {name}`, and give the .deb file"
    )
    if shutil.which("apt-get") is None:
        raise CorpusError(f"the Debian package {name} is needed, and there is no apt-get here to get it. {by_hand}")
    work.mkdir(parents=True, exist_ok=True)
    # A folder of its own, so that a download that was cut off is never taken for a package.
    with tempfile.TemporaryDirectory(dir=work) as folder:
        result = subprocess.run(["apt-get", "download", name], cwd=folder, capture_output=True, text=True)
        debs = list(Path(folder).glob("*.deb"))
        if result.returncode or not debs:
            raise CorpusError(
                f"`apt-get download {name}` failed; is there a network, and are the package lists there? {by_hand}. "
                f"It said: {' '.join((result.stderr or result.stdout).split())[-300:]}"
            )
        return debs[0].replace(work / debs[0].name)


def _extract(debs: Sequence[Path], tree: Path) -> Path:
    if shutil.which("dpkg-deb") is None:
        raise CorpusError(
            f"dpkg-deb is needed to unpack {debs[0].name}. Unpack it yourself (`bsdtar -xf {debs[0].name}`, then "
            "`bsdtar -xf data.tar.*`) and give the folder"
        )
    tree.mkdir(parents=True, exist_ok=True)
    for deb in debs:
        result = subprocess.run(["dpkg-deb", "-x", str(deb), str(tree)], capture_output=True, text=True)
        if result.returncode:
            raise CorpusError(f"{deb} cannot be unpacked; get it again. dpkg-deb said: {result.stderr.strip()[-300:]}")
    return tree
