"""KDPL: unsupervised prompt learning for CLIP by knowledge distillation.

Importing this package makes `import dassl` work: an installed Dassl is used unchanged; if there is none, the bundled engine
with the same interface (`kdpl/fallback/dassl`) is added to the end of `sys.path`.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdpl.common.environment import BUNDLED_ENGINE, VERSION, dassl_in_use
from kdpl.config.defaults import extend_cfg

if TYPE_CHECKING:
    from kdpl.classifier.classifier import Classifier, load

__version__ = VERSION
__all__ = ["Classifier", "dassl_in_use", "extend_cfg", "load"]

_HERE = Path(__file__).parent
if not (_HERE / "trainers").is_dir() and (_HERE.parent / "setup.py").is_file():
    # A source checkout, not installed or shadowing an installed copy: kdpl.trainers and kdpl.datasets are beside this folder.
    __path__.append(str(_HERE.parent))

if find_spec("dassl") is None:
    sys.path.append(str(BUNDLED_ENGINE))


def __getattr__(name: str) -> Any:
    if name in ("Classifier", "load"):  # imported at first use, so that `import kdpl` stays quick
        return getattr(import_module("kdpl.classifier.classifier"), name)
    raise AttributeError(f"module 'kdpl' has no attribute '{name}'")
