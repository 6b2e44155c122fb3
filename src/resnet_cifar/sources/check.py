"""What is true of every source: its files are checked, and it says why it fails."""

from resnet_cifar.sources.published import MD5, PICKLED_MD5, md5


class SourceError(Exception):
    """Why a source does not give the files, in a few words."""


def check(name: str, data: bytes) -> None:
    """Raise :class:`SourceError` if the data are not what is published under that name."""
    if md5(data) != (MD5 | PICKLED_MD5)[name]:
        raise SourceError(f"{name} does not have its published MD5")
