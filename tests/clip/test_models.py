"""Some architectures of each family that open_clip builds, shrunk, against the library; tests/models/walk.py takes all."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
from support import ROOT

NAMES = ["ViT-B-32-quickgelu", "RN50", "EVA02-B-16", "ViTamin-L2-384", "swin_base_patch4_window7_224"]
NAMES += ["ViT-B-16-SigLIP", "roberta-ViT-B-32"]  # the tokenizer or the whole text tower is transformers'


def test_the_table_of_docs_models_holds_every_architecture():
    if open_clip.__version__ != "3.3.0":
        pytest.skip("the page is of open_clip 3.3.0")
    own = list(Path(open_clip.__file__).with_name("model_configs").glob("*.json"))  # tests add models of their own
    page = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    counts = re.findall(r"^\| [^|]+ \| +(\d+) \| yes ", page, re.M)
    assert sum(map(int, counts)) == len(own) == 144


@pytest.mark.slow
def test_teachers_equal_the_library_and_students_learn_or_are_refused():
    command = [sys.executable, ROOT / "tests/models/walk.py", "--precisions", "fp16", "--names", *NAMES]
    process = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)
    assert process.returncode == 0, process.stderr[-4000:]
    assert f"{len(NAMES)} architectures held, 0 wrong" in process.stdout
    assert ("needs transformers" in process.stdout) == (importlib.util.find_spec("transformers") is None)
