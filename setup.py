"""Packaging of KDPL: `kdpl` is the method, `kdpl.trainers` and `kdpl.datasets` are the top-level folders of those names.

The configurations are data of the package, `kdpl/configs`, so that the command `kdpl` works without a checkout.
"""

from setuptools import find_namespace_packages, setup

FOLDERS = {"kdpl": "kdpl", "trainers": "kdpl.trainers", "datasets": "kdpl.datasets", "configs": "kdpl.configs"}

KINDS = ("md", "txt", "csv", "json", "npz", "safetensors", "html", "css", "js", "svg", "yaml")
DATA = [f"*.{kind}" for kind in KINDS] + ["LICENSE*"]


def packages(folder: str, name: str) -> list[str]:
    return [name] + [f"{name}.{p}" for p in find_namespace_packages(folder)]


setup(
    packages=[p for folder, name in FOLDERS.items() for p in packages(folder, name)],
    package_dir={name: folder for folder, name in FOLDERS.items()},
    package_data={"": DATA},
)
