"""Collections of repositories."""

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from tests.hub_server import HubServer
from tests.test_hub_server.common import CARD, REPO, put, raises_status


def test_collections(hub: HubServer, api: HfApi):
    put(api, {"README.md": CARD})
    collection = api.create_collection("My SAEs", description="All of them")
    assert api.create_collection("My SAEs", exists_ok=True).slug == collection.slug
    with raises_status(409):
        api.create_collection("My SAEs")
    api.add_collection_item(collection.slug, REPO, "model", note="the first")
    api.add_collection_item(collection.slug, REPO, "model", exists_ok=True)
    with pytest.raises(RepositoryNotFoundError):
        api.add_collection_item(collection.slug, "tester/missing", "model")
    (item,) = api.get_collection(collection.slug).items
    assert (item.item_id, item.note) == (REPO, "the first")
    api.update_collection_item(collection.slug, item.item_object_id, note="the best")
    assert [c.slug for c in api.list_collections(owner="tester", item=f"models/{REPO}")] == [collection.slug]
    assert api.get_collection(collection.slug).items[0].note == "the best"
    with raises_status(403):
        HfApi(token=hub.add_user("stranger").write_token).delete_collection(collection.slug)
    api.delete_collection_item(collection.slug, item.item_object_id)
    assert api.get_collection(collection.slug).items == []
    api.delete_collection(collection.slug)
    with raises_status(404):
        api.get_collection(collection.slug)
