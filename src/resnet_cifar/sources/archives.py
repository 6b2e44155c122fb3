"""Files of given names from a tar archive or a folder, wherever in it they lie."""

import lzma
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from resnet_cifar.sources.check import SourceError

CHUNK = 1 << 20


class _Entry(tarfile.TarInfo):
    """Of a damaged archive; where tarfile itself would take the first broken header for the archive's end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(archive)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:
            raise tarfile.ReadError(str(error)) from None


def read_tar(archive: Path, names: set[str]) -> dict[str, bytes]:
    """Read those files that an archive has, in memory: nothing is unpacked, so no path in it can do harm.

    Parameters
    ----------
    archive : Path
        A tar archive, compressed or not.
    names : set of str
        The files' names, without their folder's, which may be any.

    Returns
    -------
    dict of str to bytes
        Name and content.

    Raises
    ------
    SourceError
        If it cannot be read, is damaged in any place, or is no tar archive.
    """
    found = {}
    try:
        with tarfile.open(archive, tarinfo=_Entry) as tar:
            for entry in tar:
                name = PurePosixPath(entry.name).name
                if name in names and entry.isreg():
                    found[name] = tar.extractfile(entry).read()
            while tar.fileobj.read(CHUNK):  # to the checksum, which stands at the very end
                pass
    except (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise SourceError(f"it cannot be read ({error.strerror})") from None
        reason = str(error).partition("\n")[0].rstrip(":")
        raise SourceError(f"it is damaged or not a tar archive ({reason})") from None
    return found


def read_folder(folder: Path, names: set[str]) -> dict[str, bytes]:
    """Read those files that lie in a folder, in its folders, or in theirs: where the first of them is found.

    Raises
    ------
    SourceError
        If one cannot be read.
    """
    for pattern in ("*", "*/*", "*/*/*"):
        paths = sorted(path for path in folder.glob(pattern) if path.name in names and path.is_file())
        if paths:
            try:
                return {path.name: path.read_bytes() for path in reversed(paths)}
            except OSError as error:
                raise SourceError(f"{error.filename} cannot be read ({error.strerror})") from None
    return {}
