"""The templates of model cards, which `hfsae.hub` fills in. An installed hfsae has them as `hfsae.model_cards`."""
