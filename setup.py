"""Adds configs/, which lies beside the package, to it as escherjax.configs."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["escherjax*", "data_prep*"]), "escherjax.configs"],
    package_dir={"escherjax.configs": "configs"},
)
