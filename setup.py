"""Which packages there are: hfsae, the dashboard's assets, and the card templates, which have a folder of their own."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["hfsae", "hfsae.*"]), "hfsae.dashboard.assets", "hfsae.model_cards"])
