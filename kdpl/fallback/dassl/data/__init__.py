"""Data sets, transforms and data loaders."""

from dassl.data.manager import DataManager, DatasetWrapper, build_data_loader

__all__ = ["DataManager", "DatasetWrapper", "build_data_loader"]
