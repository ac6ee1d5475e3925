"""What features mean: labels that a language model writes and that are scored, and features found by what they mean.

chat = LocalChat("HuggingFaceTB/SmolLM2-1.7B-Instruct")
run = label_features(sae, model, tokenizer, documents, chat, collection=collection)
"""

from hfsae.label_file import Label, Score, read_label_records, read_labels, write_labels
from hfsae.meaning.chat import Chat, Conversation, LocalChat
from hfsae.meaning.endpoint import EndpointChat, EndpointError
from hfsae.meaning.label_prompts import Prompts
from hfsae.meaning.labelling import Cost, Labelled, label_features

__all__ = [
    "Chat",
    "Conversation",
    "Cost",
    "EndpointChat",
    "EndpointError",
    "Label",
    "Labelled",
    "LocalChat",
    "Prompts",
    "Score",
    "label_features",
    "read_label_records",
    "read_labels",
    "write_labels",
]
