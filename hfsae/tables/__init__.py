"""Datasets as features: one sparse row of an SAE's features for each document of a dataset, or for each token.

    table = hfsae.featurize(sae, model, tokenizer, load_text("data.jsonl"), "features.parquet")
    table.to_csr()      # scipy: (documents, n_features)
    table.to_dataset()  # Hugging Face datasets

Nothing of size tokens × n_features, or documents × n_features, is ever made.
"""
