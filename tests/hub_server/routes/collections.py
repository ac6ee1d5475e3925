"""Collections: pages that list repositories."""

import re
import secrets
from typing import Any

from ..base import HubError, now, timestamp
from ..routing import Call, Routes
from ..state import Collection, CollectionItem

routes = Routes()


def describe(collection: Collection) -> dict[str, Any]:
    items = [
        {"_id": item.key, "id": item.id, "type": item.type, "position": position, "note": {"text": item.note}}
        for position, item in enumerate(collection.items)
    ]
    return {
        "slug": collection.slug,
        "title": collection.title,
        "description": collection.description,
        "owner": {"name": collection.owner},
        "private": collection.private,
        "lastUpdated": timestamp(collection.updated),
        "theme": "blue",
        "upvotes": 0,
        "items": items,
        "position": 0,
    }


def open_collection(call: Call, owner: str, name: str, write: bool = False) -> Collection:
    """The collection, if the caller may see it, and with `write` may change it."""
    collection = call.hub.collections.get(f"{owner}/{name}")
    if collection is None or (collection.private and not call.caller.belongs_to(owner)):
        raise HubError(404, "Collection not found")
    if write:
        call.hub.check_namespace(call.caller, owner)
        collection.updated = now()
    return collection


def find_item(collection: Collection, key: str) -> CollectionItem:
    found = next((item for item in collection.items if item.key == key), None)
    if found is None:
        raise HubError(404, "No such item in this collection")
    return found


@routes.on("GET", "/api/collections")
def list_collections(call: Call) -> list[dict[str, Any]]:
    owners, wanted = call.request.query.get("owner"), call.request.query.get("item")
    found = [
        describe(collection)
        for collection in call.hub.collections.values()
        if not collection.private or call.caller.belongs_to(collection.owner)
        if owners is None or collection.owner in owners
        if wanted is None or any(f"{item.type}s/{item.id}" in wanted for item in collection.items)
    ]
    for collection in found:
        del collection["position"]  # the client counts by itself
    return found


@routes.on("POST", "/api/collections")
def create_collection(call: Call) -> dict[str, Any]:
    body = call.request.json()
    owner, title = body["namespace"], body["title"]
    call.hub.check_namespace(call.caller, owner)
    for present in call.hub.collections.values():
        if (present.owner, present.title) == (owner, title):
            raise HubError(409, "A collection of this title exists", slug=present.slug)
    slug = f"{owner}/{re.sub('[^a-z0-9]+', '-', title.lower()).strip('-')}-{secrets.token_hex(12)}"
    collection = Collection(slug, title, owner, bool(body.get("private")), body.get("description"))
    call.hub.collections[slug] = collection
    return describe(collection)


@routes.on("GET", "/api/collections/{owner}/{name}")
def get_collection(call: Call, owner: str, name: str) -> dict[str, Any]:
    return describe(open_collection(call, owner, name))


@routes.on("DELETE", "/api/collections/{owner}/{name}")
def delete_collection(call: Call, owner: str, name: str) -> dict[str, Any]:
    del call.hub.collections[open_collection(call, owner, name, write=True).slug]
    return {}


@routes.on("POST", "/api/collections/{owner}/{name}/items")
def add_item(call: Call, owner: str, name: str) -> dict[str, Any]:
    collection, body = open_collection(call, owner, name, write=True), call.request.json()
    kind, repo_id = body["item"]["type"], body["item"]["id"]
    call.hub.open_repo(call.caller, kind, repo_id, "see")
    if any((item.type, item.id) == (kind, repo_id) for item in collection.items):
        raise HubError(409, "This collection has this item")
    collection.items.append(CollectionItem(kind, repo_id, body.get("note")))
    return describe(collection)


@routes.on("PATCH", "/api/collections/{owner}/{name}/items/{key}")
def update_item(call: Call, owner: str, name: str, key: str) -> dict[str, Any]:
    collection, body = open_collection(call, owner, name, write=True), call.request.json()
    item = find_item(collection, key)
    item.note = body.get("note", item.note)
    if "position" in body:
        collection.items.remove(item)
        collection.items.insert(body["position"], item)
    return describe(collection)


@routes.on("DELETE", "/api/collections/{owner}/{name}/items/{key}")
def delete_item(call: Call, owner: str, name: str, key: str) -> dict[str, Any]:
    collection = open_collection(call, owner, name, write=True)
    collection.items.remove(find_item(collection, key))
    return {}
