"""Which packages there are: all of hfsae, and the card templates, which have a folder of their own."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["hfsae", "hfsae.*"]), "hfsae.model_cards"])
