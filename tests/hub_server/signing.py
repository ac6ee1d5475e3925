"""Signed URLs: the storage lets in whoever holds one, as pre-signed URLs of object stores do."""

import hashlib
import hmac

from .base import HubError
from .state import Hub
from .wire import Request


def signature(hub: Hub, path: str) -> str:
    return hmac.new(hub.signing_key, path.encode(), hashlib.sha256).hexdigest()


def signed_url(hub: Hub, path: str) -> str:
    """The URL of a path at the storage, good for whoever has it."""
    return f"{hub.storage}{path}?signature={signature(hub, path)}"


def check_signature(hub: Hub, request: Request) -> None:
    """Refuse a request to the storage that is not signed, or that brings a token, which is none of its business."""
    if "Authorization" in request.headers:
        raise HubError(400, "Only one auth mechanism allowed: the storage wants a signed URL and no token")
    if not hmac.compare_digest(request.option("signature"), signature(hub, request.target)):
        raise HubError(403, "SignatureDoesNotMatch")
