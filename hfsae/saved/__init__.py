"""What is done with saved and published SAEs: load many, describe, measure again, verify, convert."""

from hfsae.saved.convert import convert
from hfsae.saved.info import describe
from hfsae.saved.many import load_saes
from hfsae.saved.measuring_again import evaluate_saved
from hfsae.saved.verify import Verification, verify

__all__ = ["Verification", "convert", "describe", "evaluate_saved", "load_saes", "verify"]
