"""Hand over to the package `kdpl/` if a clone named `kdpl` is imported from its parent folder (as in an editable install).

Without this file Python would find the clone itself there, as an empty namespace package.
"""

from pathlib import Path

if __name__ == "kdpl":
    __file__ = str(Path(__file__).with_name("kdpl") / "__init__.py")
    __path__ = [str(Path(__file__).parent)]
    exec(compile(Path(__file__).read_bytes(), __file__, "exec"))
