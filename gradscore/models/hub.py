"""Downloads of pretrained weights: what is cached is used, and no network is told at once."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


@contextmanager
def cache_alone_if_offline() -> Iterator[None]:
    """Let the hub's client look into its cache alone where the hub cannot be found.

    Otherwise it asks again and again, for 46 seconds, before it says so.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def reachable(address: str) -> bool:
    """Say whether the host of a web address is known here, or a proxy may know it."""
    if any(os.environ.get(name) for name in PROXIES):
        return True
    try:
        socket.getaddrinfo(urlsplit(address).hostname, 443)
    except OSError:
        return False
    return True
