"""From text to shuffled activations.

    blocks = TokenBlocks(load_text("data.jsonl"), tokenizer, context_length=128, batch_size=32)
    source = LMActivations(model, blocks, ["resid_post.8"])
    stream = ActivationStream(source, batch_tokens=4096, window_tokens=2**18)
    for batch in stream:
        x = batch["resid_post.8"]

Everything here is an iterator that tells its place (`state_dict`) and goes back to it (`load_state_dict`): what comes
after is equal bit for bit. Nothing here knows of sparse autoencoders.
"""

from hfsae.data.activation_sources import LMActivations, NonFiniteActivationsError, RowSource
from hfsae.data.cache import CachedActivations, CacheDescription
from hfsae.data.cache_writing import Writers, remove_cache, write_cache
from hfsae.data.document_column import DocumentColumn, find_document_column
from hfsae.data.prefetch import Prefetcher, StatefulIterator
from hfsae.data.splitting import DEFAULT_SHARES, split_documents
from hfsae.data.stdlib_text import stdlib_dataset, stdlib_digest, stdlib_documents, stdlib_files
from hfsae.data.stored import DatasetActivations, IteratorActivations, TensorActivations
from hfsae.data.stream import ActivationStream, default_window_tokens
from hfsae.data.text import load_text
from hfsae.data.text_source import TextSource
from hfsae.data.token_blocks import DatasetTooSmallError, TokenBatch, TokenBlocks

__all__ = [
    "ActivationStream",
    "CacheDescription",
    "CachedActivations",
    "DocumentColumn",
    "DEFAULT_SHARES",
    "DatasetActivations",
    "DatasetTooSmallError",
    "IteratorActivations",
    "LMActivations",
    "NonFiniteActivationsError",
    "Prefetcher",
    "RowSource",
    "StatefulIterator",
    "TensorActivations",
    "TextSource",
    "TokenBatch",
    "TokenBlocks",
    "Writers",
    "find_document_column",
    "default_window_tokens",
    "load_text",
    "remove_cache",
    "split_documents",
    "stdlib_dataset",
    "stdlib_digest",
    "stdlib_documents",
    "stdlib_files",
    "write_cache",
]
