"""What features mean: labels that a language model writes and that are scored, and features found by what they mean.

chat = LocalChat("HuggingFaceTB/SmolLM2-1.7B-Instruct")
run = label_features(sae, model, tokenizer, documents, chat, collection=collection)
    found = contrast(sae, model, tokenizer, positive=["a line with it"], negative=["a line without"])
"""

from hfsae.label_file import Label, Score, read_label_records, read_labels, write_labels
from hfsae.meaning.chat import Chat, Conversation, LocalChat
from hfsae.meaning.contrast import Contrast, TellingFeature, contrast
from hfsae.meaning.endpoint import EndpointChat
from hfsae.meaning.finding import PassageFeature, labelled_features, passage_features, promoting_features
from hfsae.meaning.label_embeddings import Embedder, nearest_labels
from hfsae.meaning.label_prompts import Prompts
from hfsae.meaning.labelling import Cost, Labelled, label_features
from hfsae.meaning.neuronpedia_upload import upload_neuronpedia
from hfsae.meaning.posting import EndpointError

__all__ = [
    "Chat",
    "Contrast",
    "Conversation",
    "Cost",
    "Embedder",
    "EndpointChat",
    "EndpointError",
    "Label",
    "Labelled",
    "LocalChat",
    "PassageFeature",
    "Prompts",
    "Score",
    "TellingFeature",
    "contrast",
    "label_features",
    "labelled_features",
    "nearest_labels",
    "passage_features",
    "promoting_features",
    "read_label_records",
    "read_labels",
    "upload_neuronpedia",
    "write_labels",
]
