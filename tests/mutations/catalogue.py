"""Wrong things to put into the code, one after another, and for each the smallest set of tests that must catch it."""

import re
from pathlib import Path
from typing import NamedTuple

# From the source: run.py must not import kdpl, of which its tests import a copy.
_STUDENTS = (Path(__file__).parents[2] / "kdpl/students/__init__.py").read_text(encoding="utf-8")
LEARNERS = tuple(re.findall(r"\w+", re.search(r"^LEARNERS\b[^=]*= \(([^)]+)\)", _STUDENTS, re.MULTILINE)[1]))


class Mutation(NamedTuple):
    """One wrong thing."""

    name: str
    changes: tuple[tuple[str, str, str], ...]  # (file, text that stands there once, text in its place)
    tests: tuple[str, ...]  # as pytest takes them


def mutation(name: str, file: str, old: str, new: str, *tests: str) -> Mutation:
    return Mutation(name, ((file, old, new),), tests)


OBJECTIVE, LOSS, TEACHER = "kdpl/distill/objective.py", "kdpl/distill/loss.py", "kdpl/distill/teacher.py"
DISTILL, TRAINING, CHECKPOINTS = "trainers/distill.py", "trainers/training.py", "trainers/checkpoints.py"
ATTENTION = "kdpl/clip/blocks.py"
RECIPE, TEXT_TOWERS = "kdpl/clip/openclip/recipe.py", "kdpl/clip/openclip/text_towers.py"
TIMM_VIT, TOWERS = "kdpl/clip/openclip/timm_vit.py", "tests/test_prompted_towers.py::test_prompts_of_"
LABELS = "tests/test_labels.py::test_labels_never_reach_the_gradient"
OWN = "tests/test_own_step.py::"
FROZEN = "tests/test_frozen.py::"
PRINTING = "tests/test_printing.py::"
MANIFEST = "tests/test_manifest.py::"
SIGNALS = "tests/test_signals.py::"
CARD = "tests/test_simulated_card.py::test_work_on_a_card_is_that_on_the_cpu"
WAITS = "tests/test_synchronisation.py::test_nor_does_anything_around_the_steps_wait_more_than_once"
DIGESTS = "kdpl/common/rows/digests.py"
IDENTITY, DATA = "tests/test_identity.py::", "tests/test_data_compared.py::"
TRANSFORMERS = "tests/test_transformers_format.py::"
TRUTH = "tests/test_forks.py::test_a_trainer_finds_no_trace_of_the_truth"
ASKS = "tests/test_forks.py::test_a_trainer_that_asks_for_the_truth_stops_at_the_line_that_asks"

_STEP = "        return self.objective(images, teacher_features=teacher, frozen_features=frozen, share=self.loop.share)\n"


def label_where(condition: str) -> tuple[str, str, str]:
    """Return the change that lets the labels of a batch into the step of a training, if the condition holds."""
    return (
        DISTILL,
        _STEP,
        _STEP.replace("return", "loss, terms =")
        + f'        if "label" in batch and {condition}:\n'
        + '            loss = loss * (1 + 0.01 * batch["label"].float().mean())\n'
        + "        return loss, terms\n",
    )


FIT = "tests/test_fit.py::"

MUTATIONS = [
    # ------------------------------------------------------------------------------------------------------------- photos
    mutation(
        "a fit chooses by the photos that it reports on",
        "kdpl/photos/fitting/compare.py",
        "key=lambda row: (row.on[CHOSEN_BY].agreement, -row.on[CHOSEN_BY].divergence))",
        "key=lambda row: (row.on[REPORTED].agreement, -row.on[REPORTED].divergence))",
        f"{FIT}test_the_best_is_chosen_by_other_photos_than_it_is_reported_on",
    ),
    mutation(
        "a fit holds out copies of the photos that it learns from",
        "kdpl/photos/fitting/run.py",
        "return features.of(different)",
        "return features",
        f"{FIT}test_copies_of_a_photo_are_one_photo",
    ),
    mutation(
        "a photo under two paths counted twice",
        "kdpl/photos/labels.py",
        "os.path.realpath(photo)",
        "photo",
        f"{FIT}test_a_photo_under_two_paths_is_one_photo",
    ),
    mutation(
        "a fit holds out photos with labels",
        "kdpl/photos/fitting/plan.py",
        "    free = [name for name in photos if name not in fixed]\n",
        "    free = list(photos)\n",
        f"{FIT}test_the_parts_of_the_photos_are_disjoint_and_labelled_ones_are_never_held_out",
    ),
    mutation(
        "a threshold that separates nothing is used",
        "kdpl/photos/fitting/calibrate.py",
        "self.kept + self.rejected - 1 < GAIN",
        "self.kept + self.rejected - 1 < -GAIN",
        f"{FIT}test_a_threshold_that_does_not_separate_refuses_itself",
    ),
    mutation(
        "the threshold is measured on the photos that it was fitted on",
        "kdpl/photos/fitting/calibrate.py",
        "    base = scores[inside] if inside.any() else scores\n",
        "    base = scores[inside] if inside.any() else scores\n    new_scores, new_inside = scores, inside\n",
        f"{FIT}test_the_threshold_is_measured_on_other_photos_than_it_is_fitted_on",
    ),
    mutation(
        "labelled images have no weight of their own",
        "kdpl/distill/labelled.py",
        "loss = self.weight * F.cross_entropy(",
        "loss = F.cross_entropy(",
        "tests/test_labelled.py::test_the_loss_is_the_divergence_and_the_weighted_cross_entropy_of_the_labelled_images",
    ),
    mutation(
        "labelled images are distilled, too",
        "kdpl/distill/labelled.py",
        "return Output(logits[:batch], images[:batch], texts), loss",
        "return Output(logits[-batch:], images[-batch:], texts), loss",
        "tests/test_labelled.py::test_the_loss_is_the_divergence_and_the_weighted_cross_entropy_of_the_labelled_images",
    ),
    mutation(
        "kdpl eval counts what was trained on",
        "kdpl/photos/evaluate.py",
        "    seen = {path for path in there if digest[path] in train}\n",
        "    seen = set()\n",
        f"{FIT}test_eval_leaves_out_what_was_trained_on_whatever_it_is_called_now",
    ),
    # ------------------------------------------------------------------------------------------------------------- labels
    *(
        mutation(
            f"a label in the step of {learner}",
            *label_where(f'self.student_class.__name__ == "{learner}"'),
            f"{LABELS}[{learner}]",
        )
        for learner in LEARNERS
    ),
    mutation("a label in the step with views", *label_where("self.train_loader_x.views"), f"{LABELS}_with_views[CoOp]"),
    mutation(
        "a label in the class-agnostic step",
        *label_where("self.objective.k_max"),
        f"{LABELS}_when_the_classes_are_unknown[MaPLe]",
    ),
    mutation("a label in the step of several ranks", *label_where("self.share < 1"), f"{LABELS}_on_two_ranks[CoOp-True]"),
    mutation(
        "cross-entropy on labels in the objective",
        DISTILL,
        _STEP,
        _STEP.replace("return", "loss, terms =")
        + "        from torch.nn.functional import cross_entropy\n"
        + "        logits = self.student(images, self.objective.prepared, frozen=frozen).logits\n"
        + '        return loss + 0.01 * cross_entropy(logits, batch["label"]), terms\n',
        f"{LABELS}[CoOp]",
    ),
    # ------------------------------------------------------------------------------------------------------------- frozen
    Mutation(
        "the teacher's gradient kept",
        (
            (
                "kdpl/clip/model.py",
                "        with no_gradients(), self.autocast(frozen=True):",
                "        with self.autocast():",
            ),
            (
                TEACHER,
                "        self.clip, self.names = clip, list(names)\n",
                "        self.clip, self.names = clip, list(names)\n        clip.model.requires_grad_(True)\n",
            ),
            (TEACHER, "    @torch.no_grad()\n    def logits", "    def logits"),
        ),
        (f"{FROZEN}test_nothing_but_the_learned_prompts_has_a_gradient_or_moves[CoOp]",),
    ),
    mutation(
        "the teacher in train mode",
        TEACHER,
        "        self.clip, self.names = clip, list(names)\n",
        "        self.clip, self.names = clip, list(names)\n        clip.model.train()\n",
        f"{FROZEN}test_nothing_but_the_learned_prompts_has_a_gradient_or_moves[CoOp]",
    ),
    Mutation(
        "a frozen tower trained",
        (
            (
                "trainers/prompts.py",
                "        self.optim = build_optimizer(learned, cfg.OPTIM)\n",
                "        self.optim = build_optimizer(learned, cfg.OPTIM)\n"
                "        tower = self.clip.model.transformer.requires_grad_(True)\n"
                '        self.optim.add_param_group({"params": list(tower.parameters()), "lr": 0.002})\n',
            ),
        ),
        (f"{FROZEN}test_nothing_but_the_learned_prompts_has_a_gradient_or_moves[VPT]",),
    ),
    # --------------------------------------------------------------------------------------------------------- the loss
    mutation(
        "a reversed KL",
        LOSS,
        "difference = log_t - log_s",
        "difference = log_s - log_t",
        "tests/test_distill.py::test_the_loss_is_the_mean_of_both_divergences",
    ),
    mutation(
        "forward and reverse swapped",
        LOSS,
        '"forward": forward, "reverse": reverse}[kind]',
        '"forward": reverse, "reverse": forward}[kind]',
        "tests/test_distill.py::test_forward_and_reverse_choose_one_divergence",
    ),
    mutation(
        "the squared temperature forgotten",
        LOSS,
        "forward.mean() * temperature**2, reverse.mean() * temperature**2",
        "forward.mean() * temperature**2, reverse.mean()",
        "tests/test_distill.py::test_temperature_flattens_both_and_keeps_the_size_of_gradients",
    ),
    mutation(
        "the student's scale not used",
        TEACHER,
        '        if self.logit_scale == "student":\n            return student_scale\n',
        '        if self.logit_scale == "student":\n            return self.clip.logit_scale\n',
        "tests/test_distill.py::test_the_teacher_uses_the_students_scale_its_own_or_a_number",
    ),
    mutation(
        "a wrong template for the teacher",
        DISTILL,
        "load_teacher(self.cfg, names, self.template(), self.device",
        "load_teacher(self.cfg, names, DEFAULT, self.device",
        "tests/test_golden.py::test_losses_logits_and_parameters_are_the_published_ones[CoOp_KDPL-cpu]",
    ),
    mutation(
        "a template without its full stop",
        "kdpl/text/templates.py",
        '"a photo of a {}, a type of pet."',
        '"a photo of a {}, a type of pet"',
        "tests/test_text.py::test_each_data_set_has_its_published_sentence",
    ),
    mutation(
        "the teacher's views normalised the student's way",
        TEACHER,
        "return images if self._same_normalization else images * self._gain + self._bias",
        "return images",
        "tests/test_distill.py::test_the_teacher_sees_the_same_view_normalised_its_own_way",
    ),
    # --------------------------------------------------------------------------------------------------- class-agnostic
    mutation(
        "the K names in another order",
        OBJECTIVE,
        "names = [self.names[i] for i in chosen.tolist()]",
        "names = [self.names[i] for i in sorted(chosen.tolist())]",
        "tests/test_objective_names.py::test_the_students_names_are_the_columns_of_the_teachers_logits[CoOp]",
    ),
    mutation(
        "names selected by their greatest probability",
        "kdpl/distill/selection.py",
        "teacher_logits.float().softmax(-1).flatten(0, -2).mean(0)",
        "teacher_logits.float().softmax(-1).flatten(0, -2).amax(0)",
        "tests/test_distill.py::test_selection_takes_the_names_of_highest_mean_probability",
    ),
    # --------------------------------------------------------------------------------------------------------- PromptSRC
    mutation(
        "GPA weights of epochs from 0",
        "kdpl/students/promptsrc.py",
        "for epoch in range(1, epochs + 1)]",
        "for epoch in range(epochs)]",
        "tests/test_trainers.py::test_gaussian_aggregation_is_the_weighted_sum_over_epochs",
    ),
    mutation(
        "the last epoch's prompts in place of the weighted sum",
        "kdpl/students/promptsrc.py",
        "self.learned.load_state_dict(self.average)",
        "pass",
        "tests/test_trainers.py::test_gaussian_aggregation_is_the_weighted_sum_over_epochs",
    ),
    mutation(
        "the sign of a regulariser",
        "kdpl/students/promptsrc.py",
        "(log_s0.exp() * (log_s0 - log_s)).mean()",
        "(log_s0.exp() * (log_s - log_s0)).mean()",
        "tests/test_trainers.py::test_promptsrc_reports_its_regularisers_and_minimises_their_sum_with_the_loss",
    ),
    mutation(
        "regularisers reported and not minimised",
        OBJECTIVE,
        'total = terms["loss"] + sum(own.values())',
        'total = terms["loss"]',
        "tests/test_trainers.py::test_promptsrc_reports_its_regularisers_and_minimises_their_sum_with_the_loss",
    ),
    # ------------------------------------------------------------------------------------------------------------ passes
    mutation(
        "the text feature read one token too early",
        "kdpl/clip/prompt_layout.py",
        "[end - 1 for end in ends[1:]]",
        "[end - 2 for end in ends[1:]]",
        "tests/test_text.py::test_plain_sentences_equal_encode_text",
    ),
    mutation(
        "a suffix that sees one token too few of its prefix",
        ATTENTION,
        "device=device).tril(prefix) for _, m in self.groups]",
        "device=device).tril(prefix - 1) for _, m in self.groups]",
        "tests/test_text.py::test_learned_context_equals_the_full_length_pass",
    ),
    mutation(
        "the end of a padded prompt one token too early",
        ATTENTION,
        "ends.append(back[-1])",
        "ends.append(back[-1] - 1)",
        "tests/test_text.py::test_plain_sentences_equal_encode_text",
    ),
    mutation(
        "TCP's vectors a layer too early",
        "kdpl/students/tcp.py",
        "{self.options.PROMPT_DEPTH_TEXT - 1: vectors}",
        "{self.options.PROMPT_DEPTH_TEXT - 2: vectors}",
        "tests/test_tcp.py::test_features_loss_and_gradients_are_those_of_the_published_formula",
    ),
    mutation(
        "prompts of each class given to the classes by length",
        "kdpl/clip/prompt_layout.py",
        "range(self.deep_room)] for c in range(len(self))]",
        "range(self.deep_room)] for c in self.order]",
        "tests/test_text.py::test_prompts_in_any_layer_equal_the_full_length_pass",
    ),
    # ------------------------------------------------------------------------------------------------------------- CLIPs
    mutation(
        "OpenAI's mean for every CLIP",
        "kdpl/clip/inputs.py",
        "tuple(map(float, mean))",
        "OPENAI_MEAN",
        "tests/test_recipes.py::test_a_file_of_any_published_weights_has_the_recipe_of_its_tag_or_is_refused[MobileCLIP-S1]",
    ),
    mutation(
        "the QuickGELU of MODEL:FILE forgotten",
        RECIPE,
        'bool(config.get("quick_gelu") or preprocess.get("quick_gelu"))',
        'bool(config.get("quick_gelu"))',
        "tests/test_recipes.py::test_a_file_under_its_published_name_is_known",
    ),
    mutation(
        "any size taken for OpenAI's",
        "kdpl/clip/openai.py",
        "        if a == published and (",
        "        if True or (",
        "tests/test_bare_files.py::test_no_other_size_is_taken_for_openais[ViT-H-14]",
    ),
    mutation(
        "the configuration beside a file not looked at",
        "kdpl/clip/names/folders.py",
        '    return Source("folder", path=str(folder), file=str(file))\n',
        '    return Source("file", tag="openai", path=str(file))\n',
        "tests/test_bare_files.py::test_a_file_takes_the_configuration_beside_it",
    ),
    mutation(
        "weights of another resolution interpolated under any name",
        "kdpl/clip/openclip/weights.py",
        '        if source.kind == "open_clip" and source.path:\n            raise',
        "        if False:\n            raise",
        "tests/test_bare_files.py::test_a_file_of_another_resolution_is_refused_under_a_name_and_noticed_in_a_folder",
    ),
    mutation(
        "padding not seen by a dense tower",
        TEXT_TOWERS,
        "return DenseLayout(self, prompts, pad, self.context_length, class_specific)",
        "return DenseLayout(self, prompts, pad, max(map(len, prompts)), class_specific)",
        f"{TOWERS}a_text_tower_equal_the_librarys_own_pass[dense]",
    ),
    mutation(
        "the text feature read before the class token",
        TEXT_TOWERS,
        "layout.length - 1 + self.has_class_token)",
        "layout.length - 1)",
        f"{TOWERS}a_text_tower_equal_the_librarys_own_pass[class-token]",
    ),
    mutation(
        "the mask of published CoCas put right",
        TEXT_TOWERS,
        "(0, 1) if text.correct_cls_mask else (1, 0)",
        "(0, 1)",
        f"{TOWERS}a_text_tower_equal_the_librarys_own_pass[class-token]",
    ),
    mutation(
        "deep text prompts one position too late",
        TEXT_TOWERS,
        "_replace_at(x, deep[l], layout.first_slot)",
        "_replace_at(x, deep[l], layout.first_slot + 1)",
        f"{TOWERS}a_text_tower_equal_the_librarys_own_pass[dense]",
    ),
    mutation(
        "learned tokens turned by rotary positions",
        TIMM_VIT,
        "identity = [torch.zeros_like(sin[..., :1, :]), torch.ones_like(cos[..., :1, :])]",
        "identity = [sin[..., -1:, :], cos[..., -1:, :]]",
        f"{TOWERS}an_image_tower_equal_the_librarys_own_pass[EVA02]",
    ),
    mutation(
        "learned tokens pooled by a ViT of timm",
        TIMM_VIT,
        "trunk.norm(x[:, :own])",
        "trunk.norm(x)",
        f"{TOWERS}an_image_tower_equal_the_librarys_own_pass[SigLIP]",
    ),
    mutation(
        "learned tokens pooled by open_clip's ViT",
        "kdpl/clip/vision_tower.py",
        "if l < len(deep) or l == self.depth - 1:",
        "if l < len(deep):",
        f"{TOWERS}an_image_tower_equal_the_librarys_own_pass[CLIPA]",
    ),
    # ---------------------------------------------------------------------------------------------------------- printing
    mutation(
        "a name that begins a line",
        "kdpl/common/safe_text.py",
        "    return printable(value) if isinstance(value, Lines) else on_one_line(str(value))\n",
        "    return printable(str(value))\n",
        f"{PRINTING}test_each_value_is_printed_on_one_line",
        f"{PRINTING}test_an_error_is_on_one_line",
    ),
    mutation(
        "a name that overwrites its line",
        "kdpl/common/safe_text.py",
        '    return _RETURN_INSIDE.sub(r"\\\\r", text.translate(_ESCAPES_BUT_LINES))\n',
        "    return text.translate(_ESCAPES_BUT_LINES)\n",
        f"{PRINTING}test_a_return_is_for_progress_alone",
    ),
    mutation(
        "the output of a sweep as it comes",
        "kdpl/sweep.py",
        "    sys.exit(run_command(main))\n",
        "    sys.exit(main())\n",
        f"{PRINTING}test_all_that_a_command_prints_is_printable[kdpl/sweep.py]",
    ),
    mutation(
        "marks of direction left to the terminal",
        "kdpl/common/safe_text.py",
        "_TURNS = [0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x2070)]\n",
        "_TURNS = [0x2028, 0x2029]\n",
        "tests/test_safe_text.py::test_what_a_terminal_would_obey_is_spelt_out",
    ),
    mutation(
        "formulas in cells",
        "kdpl/common/safe_text.py",
        """    return f"'{text}" if _FORMULA.match(text) else text\n""",
        "    return text\n",
        "tests/test_safe_text.py::test_a_cell_is_no_formula_and_reads_back_the_same",
    ),
    # --------------------------------------------------------------------------------------------------------------- hub
    mutation(
        "an ETag taken for a name of a file",
        "kdpl/clip/openclip/answers.py",
        "        if not isinstance(value, str) or not _DIGEST.fullmatch(value):\n",
        "        if not isinstance(value, str):\n",
        "tests/test_hub.py::test_an_answer_that_is_no_digest_is_refused_and_writes_nothing",
    ),
    mutation(
        "the client's second question not checked",
        "kdpl/clip/openclip/answers.py",
        "    file_download.get_hf_file_metadata = checked\n",
        "",
        "tests/test_hub.py::test_an_answer_that_is_no_digest_is_refused_and_writes_nothing",
    ),
    mutation(
        "a download not compared with its digest",
        "kdpl/bundle/hub.py",
        "    if found is None or found.hexdigest() != expected:\n",
        "    if found is None:\n",
        "tests/test_hub.py::test_a_download_that_differs_from_its_digest_is_refused",
    ),
    mutation(
        "half precision that overflows",
        "kdpl/classifier/serve/preprocessing.py",
        "    if (largest := np.abs(values).max()) > np.finfo(np.float16).max:\n",
        "    if (largest := np.abs(values).max()) > np.finfo(np.float32).max:\n",
        "tests/test_export.py::test_weights_that_half_precision_does_not_hold_are_refused_and_nothing_is_written",
    ),
    # ----------------------------------------------------------------------------------------------------------- bundles
    mutation(
        "NaN predicted",
        "kdpl/clip/model.py",
        "    if not torch.isfinite(values).all():\n",
        "    if False:\n",
        "tests/test_hostile_bundles.py::test_an_output_that_is_not_finite_is_an_error_and_never_a_prediction",
    ),
    mutation(
        "a mean of NaN accepted",
        "kdpl/clip/inputs.py",
        "_number(x) and low <= x <= high for x in v",
        "_number(x) and not x < low and not x > high for x in v",
        "tests/test_hostile_bundles.py::test_a_value_that_no_training_writes_is_refused_by_name",
    ),
    # ------------------------------------------------------------------------------------------------------------- views
    mutation(
        "views keyed without their number",
        "kdpl/distill/views.py",
        "return key_of(self.name, self.content, view)",
        "return key_of(self.name, self.content)",
        "tests/test_views.py::test_other_weights_transforms_and_changed_images_do_not_find_them",
    ),
    mutation(
        "all views drawn alike",
        "kdpl/training/seeding.py",
        'f"{seed}\\0{view}\\0{image}"',
        'f"{seed}\\0{image}"',
        "tests/test_views.py::test_views_are_augmented_and_differ_between_images_views_and_view_seeds",
    ),
    mutation(
        "views found whatever the content of the image",
        "kdpl/distill/views.py",
        "return key_of(self.name, self.content, view)",
        "return key_of(self.name, view)",
        "tests/test_views.py::test_other_weights_transforms_and_changed_images_do_not_find_them",
    ),
    mutation(
        "views found whatever library has read the image",
        "kdpl/distill/views.py",
        '"versions": [PIL.__version__, torchvision.__version__],',
        '"versions": [],',
        "tests/test_views.py::test_other_weights_transforms_and_changed_images_do_not_find_them",
    ),
    mutation(
        "remembered digests never verified",
        "kdpl/common/rows/digests.py",
        "wrong = [i for i in sample if digest(paths[i]) != known[keys[i]]]",
        "wrong = []",
        "tests/test_digests.py::test_digests_are_remembered_and_follow_the_content",
    ),
    mutation(
        "a range of the table that nothing checks",
        "kdpl/config/checks.py",
        "elif key and key.values in RANGES and not",
        "elif key and key.values in () and not",
        "tests/test_configuration_faults.py::test_a_number_out_of_range_is_named_with_its_range[OPTIM.LR-0.0-a number above 0]",
    ),
    # --------------------------------------------------------------------------------------------------------- manifests
    mutation(
        "a learning rate that does not matter",
        "kdpl/config/keys.md",
        "| OPTIM.LR | 0.0003 | a number above 0 | matters |",
        "| OPTIM.LR | 0.0003 | a number above 0 | harmless |",
        f"{MANIFEST}test_a_finished_folder_is_refused_under_other_settings_and_keeps_everything[OPTIM.LR]",
    ),
    mutation(
        "an interrupted run continued under another learning rate",
        "kdpl/config/keys.md",
        "| OPTIM.LR | 0.0003 | a number above 0 | matters |",
        "| OPTIM.LR | 0.0003 | a number above 0 | harmless |",
        "tests/test_interruption.py::test_a_run_is_not_gone_on_with_under_other_settings",
    ),
    mutation(
        "training images told apart by their names alone",
        "kdpl/distill/views.py",
        "rows = [[file.name, file.content,",
        "rows = [[file.name,",
        f"{MANIFEST}test_images_whose_content_changed_are_another_run",
    ),
    mutation(
        "contexts of classes evaluated for other classes",
        "trainers/records.py",
        "    if trainer.student.class_specific:\n",
        "    if trainer is None:\n",
        f"{MANIFEST}test_class_specific_contexts_stay_with_their_classes",
    ),
    mutation(
        "prompts of one trainer evaluated as another's",
        "trainers/records.py",
        'keys = sorted(["TRAINER.NAME", *PIXELS',
        "keys = sorted([*PIXELS",
        f"{MANIFEST}test_prompts_are_evaluated_as_what_they_were_learned_as",
    ),
    mutation(
        "a step for a card counted as on a CPU",
        ATTENTION,
        'x.device.type == "cpu" and not isinstance(x, FakeTensor)',
        'x.device.type == "cpu"',
        "tests/test_estimate.py::test_a_step_without_numbers_counts_what_pytorch_counts_in_a_real_one[CoOp]",
    ),
    mutation(
        "a gradient that counts as the loss",
        "kdpl/experiments/cost.py",
        'result.register_hook(lambda gradient: setattr(self, "part", part))',
        "result.register_hook(lambda gradient: None)",
        "tests/test_estimate.py::test_tokens_in_flight_are_bounded_at_the_price_of_a_second_forward_pass",
    ),
    mutation(
        "a sweep that counts runs of other options",
        "kdpl/experiments/sweep/runs.py",
        "found += manifest.compare_settings(then.config, self.settings).values()",
        "pass",
        "tests/test_sweep.py::test_runs_of_other_options_are_listed_never_reported_and_redone_when_asked_to",
    ),
    mutation(
        "a sweep that counts results after fewer epochs",
        "kdpl/experiments/sweep/runs.py",
        "split, self.model_dir, self.settings, domains)",
        "split, self.model_dir, None, domains)",
        "tests/test_sweep.py::test_results_after_fewer_epochs_are_not_those_of_a_continued_run",
    ),
    mutation(
        "a stop that reaches the server of warm runs",
        "kdpl/experiments/sweep/warm.py",
        "        with starting_workers():\n            self.start()\n",
        "        self.start()\n",
        "tests/test_sweep_stop.py::test_a_signal_to_all_processes_takes_no_exit_status_from_a_run",
    ),
    mutation(
        "jobs in the queue that are submitted twice",
        "kdpl/experiments/sweep/slurm.py",
        "todo = [run for run in todo if run.label not in queued]",
        "todo = list(todo)",
        "tests/test_sweep.py::test_where_slurm_does_not_answer_nothing_is_submitted_twice",
    ),
    mutation(
        "differences whose draws are not paired",
        "kdpl/experiments/report/cells.py",
        "if (key, n) not in self._drawn:",
        "if True:\n            self.seed += 1",
        "tests/test_intervals.py::test_differences_are_paired",
    ),
    mutation(
        "counts by class that contradict the accuracy",
        "kdpl/experiments/report/runs.py",
        'if counts and abs(of_all - entry["accuracy"]) > 1e-3:',
        "if False:",
        "tests/test_intervals.py::test_counts_that_contradict_the_accuracy_are_refused",
    ),
    mutation(
        "claims over different data sets",
        "benchmarks/emoji/claims.py",
        "if not first or first.keys() != second.keys() or (found and not seeds):",
        "if not first or (found and not seeds):",
        "tests/test_emoji_benchmark.py::test_claims_are_shown_denied_or_open",
    ),
    mutation(
        "an artist of the training is the artist who was left out",
        "datasets/emoji/scenes.py",
        '{*self.plan.styles_of("train", "val")} - {*sources}',
        '{*self.plan.styles_of("train", "val")}',
        "tests/test_emoji_shifts.py::test_a_style_that_is_not_trained_on_may_be_the_target",
    ),
    mutation(
        "a test scene among the photos to learn from",
        "datasets/emoji/plans.py",
        '    Part("train", ("twemoji",), range(1000, 1064)),\n',
        '    Part("train", ("twemoji",), range(207, 271)),\n',
        "tests/test_emoji_photos.py::test_no_photo_is_in_two_splits_and_none_of_another_data_set_is_trained_on",
    ),
    mutation(
        "scenes of the training among the new ones by its artists",
        "datasets/emoji/plans.py",
        '    Part("test", ("noto", "fluent"), range(200, 208)),',
        '    Part("test", ("noto", "fluent"), range(8)),',
        "tests/test_emoji_shifts.py::test_no_training_or_validation_image_shows_a_test_drawing",
    ),
    mutation(
        "the search for photos sees test images",
        "benchmarks/emoji/search_photos.py",
        '"TEST.SPLIT": "val"}',
        '"TEST.SPLIT": "test"}',
        "tests/test_emoji_photos.py::test_the_search_sees_data_sets_that_no_table_of_photos_shows_and_no_test_image",
    ),
    mutation(
        "results on two domains in one mean",
        "benchmarks/emoji/claims.py",
        "    return [score for score in scores if score.tested.domains == domains]\n",
        "    return [score for score in scores if score.tested.domains in (domains, NEW_SCENES)]\n",
        "tests/test_emoji_benchmark.py::test_claims_are_shown_denied_or_open",
    ),
    mutation(
        "labels of other images beside features that were computed once",
        "trainers/supervised.py",
        '            self.training_labels[batch["index"][batch["rows"]]] = batch["label"]\n',
        "            pass\n",
        "tests/test_supervised_features.py::test_an_image_in_place_of_an_unreadable_one_has_its_own_label",
    ),
    mutation(
        "the search sees test images",
        "benchmarks/emoji/search.py",
        'options |= {"TEST.SPLIT": "val"}',
        'options |= {"TEST.SPLIT": "test"}',
        "tests/test_emoji_benchmark.py::test_the_search_sees_data_sets_that_no_base_to_new_table_shows_and_no_test_image",
    ),
    mutation(
        "a test of prompts whose training has not ended",
        "kdpl/experiments/sweep/work.py",
        "if step.training and not step.training.ended():",
        "if False:",
        "tests/test_sweep.py::test_the_test_alone_waits_for_no_training_and_says_which_is_missing",
    ),
    mutation(
        "a cell that mixes recipes",
        "kdpl/experiments/report/apart.py",
        "if several_recipes := len(set(recipes)) > 1:",
        "if several_recipes := False:",
        "tests/test_report.py::test_a_cell_never_mixes_manifests_that_differ_in_more_than_the_seed",
    ),
    mutation(
        "a recipe that forgets which images it was trained on",
        "kdpl/config/manifest.py",
        'drawn = ["training images"] if self.config.get(SHOTS, -1) > 0 else []',
        'drawn = ["training images"]',
        f"{MANIFEST}test_the_digest_follows_everything_and_the_recipe_everything_but_the_seed",
    ),
    # ----------------------------------------------------------------------------------------------------------- signals
    mutation(
        "a second signal that kills",
        "kdpl/common/signals.py",
        "elif now - self._first > REPEATED_S:",
        "else:",
        "tests/test_signals.py::test_a_second_signal_within_a_second_still_ends_in_75",
    ),
    mutation(
        "a signal ends a worker that has just begun",
        "kdpl/training/batches.py",
        "    with starting_workers():\n        iterator",
        "    if True:\n        iterator",
        "tests/test_signals.py::test_a_signal_in_the_first_moments_of_a_worker_does_not_end_it",
    ),
    mutation(
        "a launcher that nobody watches",
        "kdpl/common/distributed/watch.py",
        "while _parent_lives():",
        "while True:",
        "tests/test_watch.py::test_a_launcher_that_dies_ends_its_ranks_and_frees_the_folder",
    ),
    # ------------------------------------------------------------------------------------------------------------ resume
    mutation(
        "a resumed random state forgotten",
        CHECKPOINTS,
        '    checkpoint.set_random_state(ours["random"])\n',
        '    assert ours["random"]\n',
        f"{OWN}test_a_step_that_draws_random_numbers_is_resumed_with_the_next_ones",
    ),
    mutation(
        "a resumed optimizer state forgotten",
        CHECKPOINTS,
        '    trainer.optim.load_state_dict(state["optimizer"])\n',
        "",
        "tests/test_interruption.py::test_a_run_killed_inside_an_epoch_ends_bit_identical[KDPL_CoOp]",
    ),
    mutation(
        "a resumed schedule forgotten",
        CHECKPOINTS,
        '    trainer.sched.load_state_dict(state["scheduler"])\n',
        "",
        "tests/test_interruption.py::test_a_run_killed_inside_an_epoch_ends_bit_identical[KDPL_CoOp]",
    ),
    mutation(
        "a resumed average of prompts forgotten",
        CHECKPOINTS,
        '    trainer.student.load_extra_state_dict(ours["student"])\n',
        '    assert "student" in ours\n',
        "tests/test_interruption.py::test_a_run_killed_inside_an_epoch_ends_bit_identical[KDPL_PromptSRC]",
    ),
    mutation(
        "a resumed gradient scale forgotten",
        CHECKPOINTS,
        '    trainer.scaler.load_state_dict(ours["scaler"])\n',
        '    assert "scaler" in ours\n',
        f"{OWN}test_a_run_killed_between_its_steps_ends_bit_identical[True]",
    ),
    # --------------------------------------------------------------------------------------------------- steps and ranks
    mutation(
        "the ranks' shares not weighted",
        TRAINING,
        "scaler.scale(loss * self.share)",
        "scaler.scale(loss / distributed.world())",
        f"{OWN}test_ranks_sum_its_gradients_by_their_shares",
    ),
    mutation(
        "the ranks' gradients not summed",
        TRAINING,
        "        if self.ranks > 1:\n            distributed.sum_gradients(trainer.student.learned.parameters())\n",
        "",
        f"{OWN}test_ranks_sum_its_gradients_by_their_shares",
    ),
    mutation(
        "a rank's own step accepted",
        TRAINING,
        "if self.ranks > 1 and not self._stepped:",
        "if distributed.world() > 2 and not self._stepped:",
        f"{OWN}test_ranks_refuse_a_step_that_none_of_the_others_knows_of",
    ),
    mutation(
        "a subclass's step not called",
        TRAINING,
        "terms = trainer.forward_backward(batch)",
        "terms = __import__('kdpl.trainers.prompts', fromlist=['x']).PromptTrainer.forward_backward(trainer, batch)",
        f"{OWN}test_it_is_called_for_every_batch_and_what_it_minimises_and_reports_counts",
    ),
    mutation(
        "a subclass's step not called by an installed Dassl",
        TRAINING,
        "terms = trainer.forward_backward(batch)",
        "terms = __import__('kdpl.trainers.prompts', fromlist=['x']).PromptTrainer.forward_backward(trainer, batch)",
        f"{OWN}test_it_is_called_on_an_installed_dassl",
    ),
    mutation(
        "gradients not scaled",
        TRAINING,
        "scaler.scale(loss * self.share).backward(",
        "scaler.scale(loss.detach()); (loss * self.share).backward(",
        f"{OWN}test_its_gradients_are_scaled_and_unscaled",
    ),
    mutation(
        "a step whose scaled gradients overflow lost",
        TRAINING,
        "while self._skipped and scale >= LEAST_LOSS_SCALE:",
        "while scale < 0:",
        "tests/test_amp.py::test_a_short_run_under_amp_ends_as_in_fp32[VPT]",
    ),
    mutation(
        "a number read from the device in every step",
        "trainers/prompts.py",
        "        return {name: term.detach() for name, term in terms.items()}",
        "        return {name: term.item() for name, term in terms.items()}",
        "tests/test_synchronisation.py::test_no_step_waits[KDPL_CoOp]",
    ),
    mutation(
        "logits rounded to bf16 under autocast",
        "kdpl/clip/model.py",
        "    with torch.autocast(image_features.device.type, enabled=False):\n",
        "    if scale is not None:\n",
        "tests/test_precision.py::test_logits_are_fp32_under_autocast",
    ),
    mutation(
        "known pixels withheld from a subclass's step",
        DISTILL,
        "if self.student.image_features_are_frozen and not has_own_step(type(self)):",
        "if self.student.image_features_are_frozen:",
        f"{OWN}test_with_views_all_its_pixels_arrive_when_all_features_are_known_too",
        f"{OWN}test_with_views_a_loss_of_its_own_gets_all_pixels_too",
    ),
    mutation(
        "a step of a subclass's own that nobody notices",
        "trainers/prompts.py",
        "    return any(not is_ours(part) for name",
        "    return any(part is None for name",
        "tests/test_registry.py::test_a_trainer_whose_step_is_its_own_is_known_by_its_class",
    ),
    # ------------------------------------------------------------------------------------------- trainers of forks, wrapped
    mutation(
        "the teacher's rows in the order of the batch, whatever the labels'",
        "kdpl/distill/interception.py",
        "teacher = self.teacher_logits[target.rows]",
        "teacher = self.teacher_logits[torch.arange(len(input)) % len(self.teacher_logits)]",
        "tests/test_pseudo_labels.py::test_a_mixture_of_losses_is_the_same_mixture_of_divergences",
    ),
    mutation(
        "the images of joined pseudo-labels in another order",
        "kdpl/distill/pseudo_labels.py",
        "    source = mapped(_entries, args[0])\n",
        "    source = mapped(_entries, args[0][::-1] if func in _JOINS else args[0])\n",
        "tests/test_pseudo_labels.py::test_any_sequence_of_moves_keeps_rows_right",
    ),
    mutation(
        "pseudo-labels as an index let through",
        "kdpl/distill/pseudo_labels.py",
        "        record.use_index(name)\n",
        "        pass\n",
        "tests/test_pseudo_labels.py::test_pseudo_labels_as_an_index_are_refused_unless_allowed_by_name[diagonal]",
    ),
    mutation(
        "the cross-entropy of a checkpoint left to PyTorch in the backward pass",
        "kdpl/distill/pseudo_labels.py",
        "    if func in _LOSSES and record.cross_entropy is not None and _is_target(args, kwargs):\n",
        "    if func in _LOSSES and torch._C._current_graph_task_id() == -1 and _is_target(args, kwargs):\n",
        "tests/test_pseudo_labels.py::test_a_loss_that_a_checkpoint_computes_again_is_the_divergence_there_too",
    ),
    mutation(
        "the number of each class among pseudo-labels let through",
        "kdpl/distill/pseudo_labels.py",
        "    return torch.broadcast_shapes(found[0].shape, others[0].shape) == others[0].shape\n",
        "    return True\n",
        "tests/test_pseudo_labels.py::test_reading_pseudo_labels_as_hard_ones_is_refused_or_allowed_and_counted[one_prediction]",
    ),
    mutation(
        "the true labels in the place of a wrapped trainer's pseudo-labels",
        "trainers/wrapped.py",
        "        shown = UnlabelledBatch(batch, labels)\n",
        '        labels.record.values = batch["label"]\n        shown = UnlabelledBatch(batch, labels)\n',
        "tests/test_forks.py::test_other_true_labels_change_nothing_bit_for_bit[StyleProbe]",
    ),
    mutation(
        "pseudo-labels counted by a comparison with a tensor full of one class",
        "kdpl/distill/pseudo_labels.py",
        "not isinstance(others[0], Predictions)",
        "False",
        "tests/test_pseudo_labels.py::test_reading_pseudo_labels_as_hard_ones_is_refused_or_allowed_and_counted[counts_with_like]",
    ),
    mutation(
        "the teacher's classes as the entries of pseudo-labels",
        "kdpl/distill/pseudo_labels.py",
        "    return _labels(torch.arange(OFFSET, OFFSET + count, device=record.values.device), record)\n",
        "    return _labels(record.values.clone(), record)\n",
        "tests/test_pseudo_labels.py::test_past_pytorchs_functions_a_label_is_no_class[legacy]",
    ),
    mutation(
        "items that a data set lists again left with their truth",
        "trainers/truth.py",
        "        if State.hiding and not State.constructing:\n",
        "        if State.hiding and State.constructing < 0:\n",
        f"{ASKS}[ListsTheImagesAgain]",
    ),
    mutation(
        "lists of a data set's class left with their truth",
        "trainers/truth.py",
        "            if value is not before.get((cls, name)):\n",
        "            if not before:\n",
        f"{ASKS}[ReadsAListOfTheClass]",
    ),
    mutation(
        "validation labels for a test of other images",
        "trainers/wrapped.py",
        '        with readable("val" if split == "val" and self.val_loader is not None else "test"):\n',
        '        with readable("val", "test" if split else "test"):\n',
        f"{ASKS}[SearchesInTheTest]",
    ),
    mutation(
        "random shots of a wrapped trainer drawn by class",
        "datasets/base.py",
        "(hiding() or is_distilled(cfg.TRAINER.NAME))",
        "is_distilled(cfg.TRAINER.NAME)",
        "tests/test_forks.py::test_random_shots_of_a_wrapped_trainer_are_drawn_whatever_the_labels",
    ),
    mutation(
        "permuted truth that changes what is learned in the table of runs",
        "tests/forks/run.py",
        """        holds = holds and same == "the same bits"\n""",
        "",
        "tests/test_forks_install.py::test_the_table_of_runs_says_where_permuted_labels_or_the_formula_give_another_result",
    ),
    mutation("a data set left with its truth", "trainers/truth.py", "        close(self)\n", "        pass\n", TRUTH),
    mutation(
        "items that a data set has kept elsewhere left as they are",
        "trainers/truth.py",
        '        _empty(datum, "an image that the data set has kept elsewhere")  # for',
        "        pass  # for",
        f"{ASKS}[ReadsAReferenceOfTheClass]",
    ),
    mutation(
        "labels that a data set has collected left to it",
        "trainers/truth.py",
        "        elif not _tells_nothing(value) and",
        "        elif False and",
        f"{ASKS}[ReadsCountsOfTheDataSet]",
    ),
    mutation(
        "labels of validation images in a step without being allowed",
        "trainers/wrapped.py",
        'allowed = ("val",) if VALIDATION in words(cfg.TRAINER.KDPL.ALLOW) else ()',
        'allowed = ("val",)',
        f"{ASKS}[ReadsValidationLabels]",
    ),
    mutation(
        "a test while a wrapped trainer trains",
        "trainers/wrapped.py",
        "        if self._kdpl_training and VALIDATION not in",
        "        if False and VALIDATION not in",
        f"{ASKS}[EvaluatesWhileItTrains]",
    ),
    mutation(
        "a wrapped trainer that learns behind its test",
        "trainers/wrapped.py",
        "        check_unchanged(self, self._kdpl_tested)\n",
        "",
        f"{ASKS}[LearnsBehindTheTest]",
    ),
    mutation(
        "the path of an image left in a wrapped trainer's batch", "trainers/unlabelled.py", "|domain", "|domain|impath", TRUTH
    ),
    mutation(
        "a learned parameter in no optimizer accepted",
        "trainers/wrappable.py",
        "    check_all_learn(models, optimizers, trainer.cfg.OPTIM)\n",
        "",
        "tests/test_forks.py::test_a_learned_parameter_that_is_in_no_optimizer_is_an_error",
    ),
    mutation(
        "a training loader without images let through",
        "trainers/wrapped.py",
        "            check_images(self)\n",
        "",
        "tests/test_forks.py::test_a_trainer_that_learns_from_sentences_alone_is_refused",
    ),
    mutation(
        "a fork without extend_cfg tried with a closed configuration",
        "kdpl/forks/trial.py",
        "        cfg.set_new_allowed(True)\n",
        "        pass\n",
        "tests/test_forks_install.py::test_a_trial_reads_the_files_of_a_fork_that_has_no_extend_cfg",
    ),
    mutation(
        "a difference in double precision taken for rounding in the table of runs",
        "tests/forks/run.py",
        "<= EXACT_IN_DOUBLE for",
        "<= EXACT for",
        "tests/test_forks_install.py::test_the_table_of_runs_says_where_permuted_labels_or_the_formula_give_another_result",
    ),
    # ------------------------------------------------------------------------------------ a tensor left on the CPU, on a card
    mutation(
        "the tokens of a learner's first prompts left on the CPU",
        "kdpl/students/pieces.py",
        "torch.tensor(self.tokens, device=tower.device)",
        "torch.tensor(self.tokens)",
        f"{CARD}[steps]",
    ),
    mutation(
        "the teacher's logits left on the CPU",
        OBJECTIVE,
        "mean_logits(target, self.temperature)",
        "mean_logits(target.cpu(), self.temperature)",
        f"{CARD}[steps]",
    ),
    mutation(
        "features of views left on the CPU",
        "kdpl/distill/views.py",
        "features = moved(self.table.get(index, view), self.device)",
        "features = self.table.get(index, view)",
        f"{CARD}[others]",
    ),
    mutation(
        "the average of a checkpoint left on the CPU",
        "kdpl/students/promptsrc.py",
        "{name: value.to(device) for name, value in",
        "{name: value for name, value in",
        f"{CARD}[steps]",
    ),
    mutation(
        "a candidate of a fit left on the CPU when its steps are timed",
        "kdpl/photos/fitting/train.py",
        "    student.learned.to(clip.device)\n",
        "",
        f"{CARD}[others]",
    ),
    mutation(
        "the pixels of predictions left on the CPU",
        "kdpl/classifier/classifier.py",
        "stacked_pixels(new).to(self.device)",
        "stacked_pixels(new)",
        f"{CARD}[others]",
    ),
    # ------------------------------------------------------------------------------------------------ launches and waits
    mutation(
        "prompts of selected names sent from pageable memory",
        "kdpl/clip/inputs.py",
        "values.pin_memory().to(device, non_blocking=True)",
        "values.to(device, non_blocking=True)",
        WAITS,
    ),
    mutation(
        "the gradient of a shared prefix taken from one prompt",
        "kdpl/clip/blocks.py",
        "[:, :, : ctx.prefix].sum(1)",
        "[:, 0, : ctx.prefix]",
        "tests/test_text.py::test_learned_context_equals_the_full_length_pass",
    ),
    mutation(
        "the activation's factor left out on a card",
        "kdpl/clip/blocks.py",
        "self.c_proj.weight.t(), alpha=1 / _QUICK_GELU)",
        "self.c_proj.weight.t())",
        f"{CARD}[steps]",
    ),
    # -------------------------------------------------------------------------------------------------------- evaluation
    mutation(
        "the class order of evaluation permuted",
        "trainers/evaluation.py",
        "return [self.lab2cname[label] for label in sorted(self.lab2cname)]",
        "return [self.lab2cname[label] for label in sorted(self.lab2cname, reverse=True)]",
        "tests/test_golden.py::test_losses_logits_and_parameters_are_the_published_ones[CoOp_KDPL-cpu]",
    ),
    # -------------------------------------------------------------------------------------------------------------- data
    mutation(
        "workers left running by an epoch that failed",
        "kdpl/training/batches.py",
        '        getattr(iterator, "_shutdown_workers", lambda: None)()  # of an iterator with workers\n',
        "        pass\n",
        "tests/test_data_faults.py::test_a_damaged_image_ends_the_run_with_its_path[2]",
    ),
    mutation(
        "test drawings among the training scenes of unseen ones",
        "datasets/emoji/plans.py",
        '    Part("train", ("noto", "fluent"), range(8)),\n',
        '    Part("train", ("twemoji", "fluent"), range(8)),\n',
        "tests/test_emoji_shifts.py::test_no_training_or_validation_image_shows_a_test_drawing",
    ),
    # ------------------------------------------------------------------------------------------------------ files of others
    mutation(
        "unfinished files removed at any depth",
        "kdpl/common/files.py",
        'Path(folder).glob(f".*{PART}")',
        'Path(folder).rglob(f".*{PART}")',
        f"{SIGNALS}test_only_our_own_unfinished_files_in_our_own_folders_are_removed",
    ),
    mutation(
        "unfinished files of other programs removed",
        "kdpl/common/files.py",
        'PART = ".kdpl-part"',
        'PART = ".part"',
        f"{SIGNALS}test_only_our_own_unfinished_files_in_our_own_folders_are_removed",
    ),
    mutation(
        "a folder moved aside under a run",
        "kdpl/common/lock.py",
        "            yield Path(root).resolve() / FILE_NAME",
        "            yield from ()",
        "tests/test_lock.py::test_a_folder_is_not_moved_aside_while_a_run_below_it_is_at_work",
    ),
    mutation(
        "the lock taken through a hard link",
        "kdpl/common/lock.py",
        " or status.st_nlink > 1",
        "",
        "tests/test_lock.py::test_the_lock_is_never_written_through_a_link",
    ),
    # ---------------------------------------------------------------------------------------------------- digests of images
    mutation(
        "a digest remembered by the time of modification",
        DIGESTS,
        "s.st_mtime_ns, s.st_ctime_ns)",
        "s.st_mtime_ns)",
        "tests/test_digests.py::test_an_image_that_is_rewritten_in_place_is_noticed_whatever_its_time",
    ),
    mutation(
        "a wrong digest comes back",
        DIGESTS,
        "        store.forget()\n",
        "",
        "tests/test_digests.py::test_what_was_found_changed_once_stays_changed",
    ),
    mutation(
        "features of images that have changed since their digests",
        "kdpl/training/batches.py",
        "_SeededImages(self.dataset, self.contents)",
        "_SeededImages(self.dataset)",
        "tests/test_digests.py::test_no_feature_is_stored_under_the_digest_of_other_bytes",
    ),
    mutation(
        "a feature of the image that replaced an unreadable one",
        "kdpl/distill/views.py",
        "on_disk=not replaced",
        "on_disk=True",
        "tests/test_digests.py::test_the_feature_of_an_image_in_place_of_an_unreadable_one_is_not_stored",
    ),
    # ---------------------------------------------------------------------------------------------- learners for fixed names
    mutation(
        "TaskRes from normalised base features",
        "kdpl/students/taskres.py",
        "self.names), normalize=False)",
        "self.names), normalize=True)",
        "tests/test_taskres.py::test_loss_and_gradient_are_those_of_the_formula",
    ),
    mutation(
        "residuals of TaskRes in the order of the names asked for",
        "kdpl/students/taskres.py",
        "residuals[prepared.index]",
        "residuals[: len(prepared.index)]",
        "tests/test_taskres.py::test_names_that_were_learned_are_looked_up_in_any_order_and_others_are_refused",
    ),
    mutation(
        "names that were not learned have the first one's row",
        "kdpl/students/base.py",
        "        if other or len(rows) < len(self.names):\n",
        "        rows = {key: rows.get(key, 0) for key in keys}\n        if False:\n",
        "tests/test_taskres.py::test_names_that_were_learned_are_looked_up_in_any_order_and_others_are_refused",
    ),
    mutation(
        "TaskRes evaluated with another sentence",
        "trainers/records.py",
        "    if trainer.student.uses_template:\n",
        "    if False:\n",
        "tests/test_taskres.py::test_prompts_are_not_evaluated_with_another_sentence_or_other_classes",
    ),
    mutation(
        "a head of prompts in the image tower",
        "kdpl/classifier/serve/head.py",
        "    if not classifier.encoder.images_are_frozen:\n",
        "    if False:\n",
        "tests/test_head.py::test_what_is_no_matrix_is_refused",
    ),
    # ---------------------------------------------------------------------------------------------------- CLIPs and images
    mutation(
        "a student of another design",
        "trainers/records.py",
        '"student\'s design": design_of(trainer.clip),\n        "teacher"',
        '"teacher"',
        f"{IDENTITY}test_a_student_or_teacher_of_another_design_is_refused_everywhere[mean]",
    ),
    mutation(
        "a bundle on a CLIP of another design",
        "kdpl/bundle/learned.py",
        "    _refuse_other_design(bundle, clip, name, way_out)\n",
        "",
        f"{IDENTITY}test_a_student_or_teacher_of_another_design_is_refused_everywhere[activation]",
    ),
    mutation(
        "caches without the design",
        "kdpl/clip/model.py",
        "hashlib.sha256(json.dumps(design_of_tower(design_of(self), tower)).encode())",
        "hashlib.sha256()",
        f"{IDENTITY}test_every_part_of_a_design_makes_another_clip_with_caches_of_its_own",
    ),
    mutation(
        "a CLIP compared by where it lies",
        "kdpl/config/manifest.py",
        "if weights is not None and weights == others and not other_design:",
        "if weights is None:",
        f"{IDENTITY}test_where_a_clip_lies_does_not_matter",
    ),
    mutation(
        "the activation of a CLIP from transformers forgotten",
        "kdpl/clip/openclip/transformers_format.py",
        """"quick_gelu": text["hidden_act"] == "quick_gelu",""",
        """"quick_gelu": False,""",
        f"{TRANSFORMERS}test_a_saved_model_has_the_librarys_features[quick_gelu-single]",
    ),
    mutation(
        "query and key of transformers exchanged",
        "kdpl/clip/openclip/transformers_format.py",
        'for which in "qkv"]',
        'for which in "kqv"]',
        f"{TRANSFORMERS}test_a_saved_model_has_the_librarys_features[gelu-single]",
    ),
    mutation(
        "a processor that squashes taken for one that cuts",
        "kdpl/clip/openclip/transformers_format.py",
        'mode = "squash"',
        'mode = "shortest"',
        f"{TRANSFORMERS}test_images_are_prepared_as_the_processor_says",
    ),
    mutation(
        "the hidden colour of transparent pixels",
        "kdpl/common/images.py",
        "if upright.has_transparency_data:",
        "if False:",
        "tests/test_images.py::test_transparency_is_laid_on_white[RGBA]",
    ),
    mutation(
        "the zero-shot teacher's images prepared as the student's",
        "trainers/zeroshot.py",
        'follow_model(cfg, self.preprocessing, "TRAINER.KDPL.TEACHER", name, own=True)',
        "super().follow_model(cfg)",
        "tests/test_inputs.py::test_the_zero_shot_teacher_prepares_images_its_own_way",
    ),
    mutation(
        "a place before an archive taken for a fault of the disk",
        "datasets/coop/archives.py",
        "(number != errno.EINVAL or error.filename is not None)",
        "True",
        "tests/test_datasets_archives.py::test_whatever_the_readers_raise_is_a_damaged_archive",
    ),
    mutation(
        "the output of a sweep lost to threads",
        "kdpl/common/safe_text.py",
        "if not output.silent and sys.stdout is output:",
        "if sys.stdout is output:",
        f"{PRINTING}test_threads_that_are_silent_at_the_same_time_leave_the_output_to_the_others",
    ),
    mutation(
        "an accuracy replaced by one on other images",
        "trainers/tested.py",
        "        refuse_other_images(trainer, split, self.loader)\n",
        "",
        f"{DATA}test_a_result_is_not_replaced_by_one_on_other_images",
    ),
    mutation(
        "results on other images in one cell",
        "kdpl/experiments/report/apart.py",
        "if several_images := same_images and len({score.images for score in members if score.images}) > 1:",
        "if several_images := False:",
        f"{DATA}test_old_and_new_images_do_not_stand_in_one_cell",
    ),
    mutation(
        "a sweep that does not look at data",
        "kdpl/sweep.py",
        "sweep = replace(sweep, look=look)",
        "sweep = replace(sweep, look=None)",
        f"{DATA}test_a_sweep_sees_other_data",
    ),
    mutation(
        "more epochs as another run",
        "kdpl/config/manifest.py",
        '        config |= {key: pair[0] for key, pair in change.items() if key != "epoch"}\n',
        "        pass\n",
        f"{DATA}test_more_epochs_are_the_same_run_and_its_earlier_results_are_kept_apart",
    ),
    mutation(
        "a learner without its modules",
        "kdpl/config/source.py",
        "**({MODULES: used} if used else {})",
        "**{}",
        "tests/test_external_learner.py::test_a_module_that_the_file_imports_belongs_to_the_learner",
    ),
]
