"""The storage of large files: another origin, which knows hashes and signed URLs, and no accounts."""

import hashlib

from ..base import HubError
from ..routing import Call, Routes
from ..wire import Response

routes = Routes()


def store(call: Call, oid: str, data: bytes) -> Response:
    """Keep `data` under its sha256; refuse it if that is not what was announced."""
    actual = hashlib.sha256(data).hexdigest()
    if actual != oid:
        raise HubError(400, f"BadDigest: expected sha256 {oid}, got {actual} ({len(data)} bytes)")
    call.hub.objects[oid] = data
    return Response()


@routes.on("GET", "/objects/{oid}")
def download(call: Call, oid: str) -> Response:
    return Response.file(call.request, call.hub.objects[oid], {"ETag": f'"{oid}"'})


@routes.on("PUT", "/objects/{oid}")
def upload(call: Call, oid: str) -> Response:
    return store(call, oid, call.request.body)


@routes.on("PUT", "/objects/{oid}/parts/{number}")
def upload_part(call: Call, oid: str, number: str) -> Response:
    call.hub.parts.setdefault(oid, {})[int(number)] = call.request.body
    return Response(headers={"ETag": part_etag(call.request.body)})


@routes.on("POST", "/objects/{oid}/complete")
def complete(call: Call, oid: str) -> Response:
    """Put the parts together, once each is there as its ETag says."""
    parts = call.hub.parts.get(oid, {})
    listed = {part["partNumber"]: part["etag"] for part in call.request.json()["parts"]}
    if listed != {number: part_etag(data) for number, data in parts.items()}:
        raise HubError(400, "InvalidPart: the listed parts are not the uploaded ones")
    response = store(call, oid, b"".join(data for _, data in sorted(parts.items())))
    del call.hub.parts[oid]
    return response


def part_etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'
