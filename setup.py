"""Adds configs/, which lies beside the package, to it as escherjax.configs, and a data folder."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["escherjax*", "data_prep*"]),
        "escherjax.configs",
        "escherjax.metrics.lpips_heads",
    ],
    package_dir={"escherjax.configs": "configs"},
)
