"""Data sets, transforms and data loaders."""

from dassl.data.manager import DataManager, DatasetWrapper

__all__ = ["DataManager", "DatasetWrapper"]
