"""The endpoints of the Hub and of its storage, grouped by subject."""

from ..routing import Routes
from . import browse, collections, discussions, repos, storage, uploads

hub_routes = Routes().include(
    repos.routes, browse.routes, uploads.routes, discussions.routes, collections.routes, repos.pages
)
storage_routes = storage.routes

__all__ = ["hub_routes", "storage_routes"]
