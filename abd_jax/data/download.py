"""Original files from the network, through TFDS's download manager: its addresses, its published SHA-256 sums.

Of TFDS only what needs no TensorFlow is used; its own preparation of these sets does need it.
"""

from __future__ import annotations

import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from abd_jax.data.catalog import Info

SECONDS = 15
"""How long an address may take to answer; TFDS itself gives up after 204 s."""


def download(info: Info, directory: Path) -> Path:
    """Downloads a data set's original files into `directory`, under their own names; returns it.

    Raises:
        OSError: an address cannot be reached.
        ValueError: what came has another SHA-256 than TFDS published (GTSRB is not TFDS's: its zips have their own).
    """
    addresses = urls(info)
    for address in addresses.values():
        _probe(address)
    from tensorflow_datasets.core.download.download_manager import DownloadManager, NonMatchingChecksumError

    manager = DownloadManager(download_dir=directory, url_infos=published(info))
    try:
        # One by one: if one fails, no other is still being written while the directory is removed.
        paths = {name: manager.download(address) for name, address in addresses.items()}
    except NonMatchingChecksumError as error:
        raise ValueError(str(error).partition("To debug")[0]) from error
    except Exception as error:  # its transport raises errors of several libraries
        raise OSError(f"{info.name}: the download failed ({error})") from error
    for name, path in paths.items():
        Path(path).rename(directory / name)
    return directory


def urls(info: Info) -> dict[str, str]:
    """File name → address."""
    if _has_addresses(info):
        return {file.rpartition("/")[2]: file for file in info.files}
    addresses = {known.filename: url for url, known in published(info).items()}
    return {name: addresses[name] for name in info.files}


def published(info: Info) -> dict[str, Any]:
    """Address → size, SHA-256 and file name that TFDS has published; empty for what TFDS does not have."""
    if _has_addresses(info):
        return {}
    import tensorflow_datasets as tfds

    return dict(tfds.builder_cls(info.name).url_infos)


def _has_addresses(info: Info) -> bool:
    return all(urllib.parse.urlsplit(file).scheme for file in info.files)


def _probe(address: str) -> None:
    """Raises OSError at once if nobody answers there."""
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=SECONDS).close()
    except urllib.error.HTTPError:
        return  # somebody answered; the download says what is wrong
    except OSError as error:
        host = urllib.parse.urlsplit(address).hostname
        reason = getattr(error, "reason", error)
        raise OSError(f"{host} cannot be reached ({reason}); without network: --from DIR with the files") from error
