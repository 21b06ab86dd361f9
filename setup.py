"""Packaging of KDPL: `kdpl` is the method, `kdpl.trainers` and `kdpl.datasets` are the top-level folders of those names."""

from setuptools import find_namespace_packages, setup


def packages(folder: str, name: str) -> list[str]:
    return [name] + [f"{name}.{p}" for p in find_namespace_packages(folder)]


setup(
    packages=packages("kdpl", "kdpl") + packages("trainers", "kdpl.trainers") + packages("datasets", "kdpl.datasets"),
    package_dir={"kdpl": "kdpl", "kdpl.trainers": "trainers", "kdpl.datasets": "datasets"},
    package_data={"": ["*.md", "*.txt", "*.csv", "*.json", "*.yaml", "*.npz", "*.safetensors", "*.html", "LICENSE*"]},
)
