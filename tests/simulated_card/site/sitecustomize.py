"""Python imports this at its start: PyTorch has the simulated card as soon as it is imported."""

import importlib.abc
import importlib.util
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))


class _PyTorch(importlib.abc.MetaPathFinder):
    """Finds PyTorch, once, and loads the card before it and its functions after it."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != "torch":
            return None
        sys.meta_path.remove(self)
        import simulated_card

        spec = importlib.util.find_spec("torch")
        execute = spec.loader.exec_module

        def execute_with_card(module):
            del sys.modules["torch"]
            simulated_card.load()
            sys.modules["torch"] = module
            execute(module)
            simulated_card.finish()

        spec.loader.exec_module = execute_with_card
        return spec


sys.meta_path.insert(0, _PyTorch())
