"""The KL finish: the last part of a run, in which SAEs also learn to keep the language model's predictions.

`finish.KLFinish` reads whole sequences (`sequence_batches`) and asks the language model what the reconstructions do to
its predictions (`divergence`). Each SAE's step gets a term of its loss (`hfsae.autoencoder.outputs.Downstream`).
"""
