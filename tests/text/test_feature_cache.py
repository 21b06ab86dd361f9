"""The cache of text features: what it holds is what would be computed, whatever happened to its files."""

import pytest
import torch
from support import save_clip

from kdpl.clip.loading import load_clip
from kdpl.text.feature_cache import TextFeatures, cached_text_features
from kdpl.text.prompts import ensemble_features, sentence_features
from kdpl.text.templates import fill

NAMES = ["red fox", "hot dog", "hat", "fire truck", "tench"]
TEMPLATE = "a photo of a {}."
TEMPLATES = [TEMPLATE, "itap of the {}.", "a {} in a video game."]
SIZES = (32, 32, 1, 64, 16, 77, 49408, 64, 1, 2)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip") / "clip.safetensors", 5, *SIZES)


@pytest.fixture(scope="module")
def clip(weights):
    return load_clip(weights)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of a cache that is empty."""
    monkeypatch.setenv("KDPL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "text_features"


def files(folder):
    return sorted(folder.rglob("*.safetensors"))


def test_cold_and_warm_runs_see_the_very_values_that_are_computed_without_a_cache(clip, cache, capsys):
    computed = sentence_features(clip, fill(TEMPLATE, NAMES))
    cold = cached_text_features(clip, NAMES, TEMPLATE)
    assert "Computing" in capsys.readouterr().out
    warm = cached_text_features(clip, NAMES, TEMPLATE)
    assert capsys.readouterr().out == ""
    assert torch.equal(cold, computed) and torch.equal(warm, computed)
    assert len(files(cache)) == 1


def test_features_do_not_depend_on_the_callers_autocast(clip):
    with torch.autocast("cpu", torch.bfloat16):
        features = cached_text_features(clip, NAMES, TEMPLATE)
        ensemble = TextFeatures(clip, TEMPLATES)(NAMES)
    assert torch.equal(features, sentence_features(clip, fill(TEMPLATE, NAMES)))
    assert torch.equal(ensemble, ensemble_features(clip, NAMES, TEMPLATES, normalize=False))


def test_other_names_another_order_and_another_template_are_kept_apart(clip, cache):
    cached_text_features(clip, NAMES, TEMPLATE)
    for names, template in ((NAMES[:-1], TEMPLATE), (NAMES[::-1], TEMPLATE), (NAMES, "{}.")):
        assert torch.equal(cached_text_features(clip, names, template), sentence_features(clip, fill(template, names)))
    assert len(files(cache)) == 4


def test_the_key_follows_the_text_tower_and_nothing_else(weights):
    def digest_after(change):
        clip = load_clip(weights)
        with torch.no_grad():
            change(clip.model)
        return clip.digest("text")

    unchanged = digest_after(lambda model: None)
    assert digest_after(lambda model: model.visual.conv1.weight.add_(1)) == unchanged
    assert digest_after(lambda model: model.logit_scale.add_(1)) == unchanged
    assert digest_after(lambda model: model.token_embedding.weight[7, 3].add_(1e-3)) != unchanged
    assert digest_after(lambda model: model.text_projection[0, 0].add_(1e-3)) != unchanged
    assert digest_after(lambda model: model.transformer.half()) != unchanged


def test_damaged_features_are_computed_again(clip, cache, capsys):
    good = cached_text_features(clip, NAMES, TEMPLATE)
    (path,) = files(cache)
    path.write_bytes(path.read_bytes()[:-7])
    assert torch.equal(cached_text_features(clip, NAMES, TEMPLATE), good)
    assert f"'{path}' is damaged" in capsys.readouterr().out
    assert torch.equal(cached_text_features(clip, NAMES, TEMPLATE), good)
    assert "damaged" not in capsys.readouterr().out


def test_a_second_run_finds_what_the_first_one_computed(clip, cache):
    first = TextFeatures(clip, TEMPLATES)
    features = torch.cat([first(NAMES[:2]), first(NAMES[2:])])
    assert not files(cache)
    first.flush()
    kept = files(cache)
    assert len(kept) == 1
    second = TextFeatures(clip, TEMPLATES)
    assert torch.equal(second(NAMES), features)
    assert torch.equal(second([NAMES[3], NAMES[0], NAMES[3]]), features[[3, 0, 3]])
    torch.testing.assert_close(features, ensemble_features(clip, NAMES, TEMPLATES, normalize=False))
    second.flush()
    assert files(cache) == kept
