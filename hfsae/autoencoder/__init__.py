"""What an SAE is and computes: tensors, encode, decode, the training step, and what an architecture decides.

`model.py` has what all architectures share, `architecture.py` what each decides, `objective.py` the parts of losses.
Loading, the Hub and language models come with `hfsae.SAE`, which stands above.
"""

from hfsae.autoencoder.architecture import Architecture
from hfsae.autoencoder.initialisation import initialise
from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.autoencoder.objective import TrainingStep
from hfsae.autoencoder.outputs import SAEOutput, StepState, StepStatistics
from hfsae.autoencoder.registry import register
from hfsae.autoencoder.strategies import Partition, replayable, shardable

__all__ = [
    "Architecture",
    "Partition",
    "SAEOutput",
    "SparseAutoencoder",
    "StepState",
    "StepStatistics",
    "TrainingStep",
    "initialise",
    "register",
    "replayable",
    "shardable",
]
