"""Wrong things to put into the code, one after another, and for each the tests that must catch it.

A mutation names a function, method or constant and what takes its place, as an expression of the module that is given the right
one. Tests are named by their file, which may lie in any folder of tests/.
"""

from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Mutation(NamedTuple):
    """One wrong thing."""

    name: str
    file: str
    target: str  # in the module: a name, or Class.name
    wrong: str  # an expression: a function from the right one to what takes its place
    tests: tuple[str, ...]


def located(test: str) -> str:
    """Return a test of the catalogue, `file::name`, as pytest takes it.

    Raises:
        LookupError: there is not one file of that name.
    """
    file, _, name = test.partition("::")
    (path,) = (ROOT / "tests").rglob(f"{file}.py")
    return f"{path.relative_to(ROOT).as_posix()}::{name}"


LABELS = "test_labels::test_labels_never_reach_the_gradient"
GOLDEN = "test_golden::test_losses_logits_and_parameters_are_the_published_ones"
KILLED = "test_interruption::test_a_run_killed_inside_an_epoch_ends_bit_identical"
CARD = "test_simulated_card::test_work_on_a_card_is_that_on_the_cpu"
HEAD = "test_kernel_head::test_"
PLACE = "test_forks::test_no_place_has_the_truth"
RESTORE = "lambda f: lambda trainer, path, state, saved: f(trainer, path, {state}, {saved})"
AFTER = "lambda f: lambda self, *a, **k: (f(self, *a, **k), {change})[0]"  # an __init__, and something behind it

LABEL_IN_LOSS = (
    'lambda f: lambda self, batch: (lambda loss, terms: (loss * (1 + 0.01 * batch["label"].float().mean()), terms))'
    "(*f(self, batch))"
)


def restored(**changes: str) -> str:
    """Return a restored state in which a part is what the new run has, or another value."""
    state = "".join(f', "{key}": {value}' for key, value in changes.items() if key in ("optimizer", "scheduler"))
    saved = "".join(f', "{key}": {value}' for key, value in changes.items() if key not in ("optimizer", "scheduler"))
    return RESTORE.format(state=f"{{**state{state}}}", saved=f"{{**saved{saved}}}")


def _all() -> list[tuple[str, str, str, str, str]]:
    loss, teacher, objective = "kdpl/distill/loss.py", "kdpl/distill/teacher.py", "kdpl/distill/objective.py"
    distill, prompts, checkpoints = "trainers/distill.py", "trainers/prompts.py", "trainers/checkpoints.py"
    blocks, model, src = "kdpl/clip/blocks.py", "kdpl/clip/model.py", "kdpl/students/promptsrc.py"
    head, pseudo, manifest = "kdpl/students/kernel_head.py", "kdpl/distill/pseudo_labels.py", "kdpl/config/manifest.py"
    labels, compute = "trainers/teacher_labels.py", "DistillTrainer.compute_loss"
    average = "test_trainers::test_gaussian_aggregation_is_the_weighted_sum_over_epochs"
    views = "test_views::test_views_are_augmented_and_differ_between_images_views_and_view_seeds"
    return [
        # labels
        *(
            (f"a label in the step of {learner}", distill, compute, LABEL_IN_LOSS, f"{LABELS}[{learner}]")
            for learner in ("CoOp", "VPT", "PromptSRC", "TaskRes")
        ),
        ("a label in the step with views", distill, compute, LABEL_IN_LOSS, f"{LABELS}_with_views[CoOp]"),
        ("a label in the class-agnostic step", distill, compute, LABEL_IN_LOSS,
         f"{LABELS}_when_the_classes_are_unknown[MaPLe]"),
        ("a label in the step of several ranks", distill, compute, LABEL_IN_LOSS, f"{LABELS}_on_two_ranks[CoOp-True]"),
        # the objective
        ("half of the divergence", loss, "_both_ways", "lambda f: lambda *a: (f(*a)[0],) * 2",
         "test_distill::test_the_loss_is_the_mean_of_both_divergences"),
        ("forward and reverse swapped", loss, "_both_ways", "lambda f: lambda s, t, *a: f(t, s, *a)",
         "test_distill::test_the_loss_is_the_mean_of_both_divergences"),
        ("the squared temperature forgotten", loss, "distillation_loss",
         'lambda f: lambda s, t, k="symmetric", T=1.0: {name: v / T**2 for name, v in f(s, t, k, T).items()}',
         "test_distill::test_temperature_flattens_both_and_keeps_the_size_of_gradients"),
        ("the target left in the others of dkd", loss, "decoupled", "lambda f: lambda s, t, **k: f(s, t.flip(1), **k)",
         "test_distill::test_dkd_and_argmax_are_those_of_their_papers"),
        ("the student's scale not used", teacher, "Teacher.logits",
         "lambda f: lambda self, x, s: f(self, x, self.clip.logit_scale)",
         "test_distill::test_the_teacher_uses_the_students_scale_its_own_or_a_number"),
        ("the teacher's views normalised the student's way", teacher, "Teacher.adapt",
         'lambda f: lambda self, x: F.interpolate(x.float(), (self.clip.resolution,) * 2, mode="bicubic", antialias=True)',
         "test_distill::test_the_teacher_sees_the_same_view_normalised_its_own_way"),
        ("names selected by their greatest probability", "kdpl/distill/selection.py", "select_names",
         "lambda f: lambda z, k, w=1.0: f(z.softmax(-1).flatten(0, -2).amax(0, keepdim=True).log(), k, w)",
         "test_distill::test_selection_takes_the_names_of_highest_mean_probability"),
        ("the names in another order", objective, "Objective.prepare", "lambda f: lambda self, n: f(self, list(n)[::-1])",
         "test_objective_names::test_the_students_names_are_the_columns_of_the_teachers_logits[CoOp]"),
        ("the row of another image", "kdpl/distill/given.py", "Probabilities.logits",
         "lambda f: lambda self, k: f(self, k[::-1])",
         "test_given::test_a_table_gives_each_image_its_own_distribution_in_any_order"),
        ("labelled images have no weight of their own", objective, "Labelled.loss",
         "lambda f: lambda self, logits: f(self, logits) / self.weight",
         "test_labelled::test_the_loss_is_the_divergence_and_the_weighted_cross_entropy_of_the_labelled_images"),
        ("another sentence for the teacher", distill, "DistillTrainer.template", 'lambda f: lambda self: "a {}."',
         f"{GOLDEN}[CoOp_KDPL-cpu]"),
        ("a template without its full stop", "kdpl/text/templates.py", "template_for",
         'lambda f: lambda *a, **k: f(*a, **k).rstrip(".")', "test_text::test_each_data_set_has_its_published_sentence"),
        # students
        ("GPA weights an epoch too late", src, "gaussian_weights", "lambda f: lambda epochs, m, s: f(epochs, m + 1, s)",
         average),
        ("the last epoch's prompts in place of the weighted sum", src, "PromptSRC.end_epoch", "lambda f: lambda *a: None",
         average),
        ("the sign of a regulariser", src, "PromptSRC.regularisers", "lambda f: lambda *a: {k: -v for k, v in f(*a).items()}",
         "test_trainers::test_promptsrc_reports_its_regularisers_and_minimises_their_sum_with_the_loss"),
        ("TCP's vectors given to other classes", "kdpl/students/tcp.py", "TCP.text_features",
         "lambda f: lambda self, p, i=None: f(self, p._replace(features=p.features.flip(0)), i)",
         "test_tcp::test_features_loss_and_gradients_are_those_of_the_published_formula"),
        ("residuals of TaskRes in another order", "kdpl/students/base.py", "Student.learned_rows",
         "lambda f: lambda self, names: sorted(f(self, names))",
         "test_taskres::test_names_that_were_learned_are_looked_up_in_any_order_and_others_are_refused"),
        # the head
        ("neighbours that do not agree", head, "agree", "lambda f: lambda x, log_p, *a, **k: log_p.exp()",
         f"{HEAD}neighbours_agree_by_the_formula_and_fixed_photos_keep_their_answer"),
        ("names that count by their photos", head, "photo_weights", "lambda f: lambda q: torch.ones_like(q[:, 0])",
         f"{HEAD}scores_are_those_of_the_formula"),
        ("a wider kernel", head, "kernel", "lambda f: lambda x, c, g: f(x, c, 0.9 * g)",
         f"{HEAD}scores_are_those_of_the_formula"),
        ("another factor of probabilities", head, "fit_factor", "lambda f: lambda s, p: 1.1 * f(s, p)",
         f"{HEAD}factor_is_that_of_the_teacher"),
        # towers
        ("another activation", blocks, "_QUICK_GELU", "lambda v: 1.6", "test_text::test_plain_sentences_equal_encode_text"),
        ("suffixes that see what comes after", blocks, "GroupedAttention.__init__",
         AFTER.format(change='setattr(self, "masks", [m.fill_(True) for m in self.masks])'),
         "test_text::test_learned_context_equals_the_full_length_pass"),
        ("the end of a padded prompt one token too early", blocks, "PaddedAttention.__init__",
         AFTER.format(change='setattr(self, "ends", self.ends - 1)'), "test_text::test_plain_sentences_equal_encode_text"),
        ("learned tokens before the image's own", "kdpl/clip/vision_tower.py", "put_behind",
         "lambda f: lambda x, p: x if p is None else torch.cat([p.to(x.dtype).expand(len(x), -1, -1), x], 1)",
         f"{GOLDEN}[MaPLe_KDPL-cpu]"),
        ("logits rounded to bf16", model, "similarity_logits", "lambda f: lambda s, a, b: f(s, a.bfloat16(), b).bfloat16()",
         "test_precision::test_logits_are_fp32_under_autocast"),
        ("features that are not of length one", model, "normalized", "lambda f: lambda x: x.float()",
         f"{GOLDEN}[CoOp_KDPL-cpu]"),
        ("NaN predicted", model, "check_finite", "lambda f: lambda values, what: values",
         "test_hostile_bundles::test_an_output_that_is_not_finite_is_an_error_and_never_a_prediction"),
        # training
        ("a frozen tower trained", prompts, "PromptTrainer.build_model",
         AFTER.format(change="[p.requires_grad_() or self.optim.add_param_group({'params': [p]}) for p in "
                      "[next(self.clip.model.visual.parameters())]]"),
         "test_frozen::test_nothing_but_the_learned_prompts_has_a_gradient_or_moves[VPT]"),
        ("a schedule an epoch ahead", "kdpl/training/schedule.py", "rate", "lambda f: lambda epoch, o, lr: f(epoch + 1, o, lr)",
         "test_schedule::test_the_published_schedule_is_one_warm_up_epoch_and_a_cosine_from_the_base_rate"),
        ("labels of other images", "trainers/distill.py", "SupervisedTrainer.parse_batch_train",
         "lambda f: lambda self, batch: (lambda x, y: (x, y.roll(1)))(*f(self, batch))", f"{GOLDEN}[CoOp-cpu]"),
        ("the class order of evaluation permuted", "trainers/evaluation.py", "EvaluatedTrainer.model_inference",
         "lambda f: lambda self, images: f(self, images).flip(1)", f"{GOLDEN}[CoOp_KDPL-cpu]"),
        ("the ranks' gradients not summed", "kdpl/common/distributed.py", "sum_gradients", "lambda f: lambda parameters: None",
         "test_own_step::test_ranks_sum_its_gradients_by_their_shares"),
        ("the ranks' shares not weighted", prompts, "PromptTrainer.model_backward",
         "lambda f: lambda self, loss: self.scaler.scale(loss).backward()",
         "test_own_step::test_ranks_sum_its_gradients_by_their_shares"),
        ("a step whose scaled gradients overflow lost", prompts, "PromptTrainer.model_backward_and_update",
         "lambda f: lambda self, loss, names=None: (self.model_zero_grad(), self.model_backward(loss), self.model_update())",
         "test_amp::test_a_short_run_under_amp_ends_as_in_fp32[VPT]"),
        ("a number read from the device in every step", prompts, "PromptTrainer.take_step",
         "lambda f: lambda self, batch: (f(self, batch), next(self.student.learned.parameters()).sum().item())[0]",
         "test_synchronisation::test_no_step_waits[KDPL_CoOp]"),
        # resume
        ("a resumed random state forgotten", "kdpl/training/checkpoint.py", "set_random_state", "lambda f: lambda state: None",
         "test_own_step::test_a_step_that_draws_random_numbers_is_resumed_with_the_next_ones"),
        ("a resumed optimizer state forgotten", checkpoints, "_restore", restored(optimizer="trainer.optim.state_dict()"),
         f"{KILLED}[KDPL_CoOp]"),
        ("a resumed schedule forgotten", checkpoints, "_restore", restored(scheduler="trainer.sched.state_dict()"),
         f"{KILLED}[KDPL_CoOp]"),
        ("a resumed place in the epoch forgotten", checkpoints, "_restore", restored(batch="0"), f"{KILLED}[KDPL_CoOp]"),
        ("a resumed average of prompts forgotten", checkpoints, "_restore", restored(student="{}"),
         f"{KILLED}[KDPL_PromptSRC]"),
        ("a resumed gradient scale forgotten", checkpoints, "_restore", restored(scaler="trainer.scaler.state_dict()"),
         "test_own_step::test_a_run_killed_between_its_steps_ends_bit_identical[True]"),
        ("settings that do not matter", manifest, "differences", "lambda f: lambda *a: {}",
         "test_manifest::test_a_finished_folder_is_refused_under_other_settings_and_keeps_everything[OPTIM.LR]"),
        ("images that do not matter", manifest, "found_differences", "lambda f: lambda then, now: {}",
         "test_manifest::test_images_whose_content_changed_are_another_run"),
        # caches
        ("views keyed without their number", "kdpl/distill/views.py", "ImageFile.key",
         "lambda f: lambda self, view: f(self, 0)",
         "test_views::test_other_weights_transforms_and_changed_images_do_not_find_them"),
        ("all views drawn alike", "kdpl/training/batches.py", "view_seed",
         "lambda f: lambda seed, image, view: f(0, '', 0)", views),
        # forks
        ("the teacher's rows in another order", pseudo, "DistilledStep.__init__",
         "lambda f: lambda self, t, *a, **k: f(self, t.flip(0), *a, **k)",
         "test_pseudo_labels::test_a_mixture_of_losses_is_the_same_mixture_of_divergences"),
        ("the rows of moved labels in another order", pseudo, "_labels",
         "lambda f: lambda v, rows, step: f(v, rows.flip(0), step)",
         "test_pseudo_labels::test_any_sequence_of_moves_keeps_rows_right"),
        ("a data set left with its truth", labels, "TeacherLabels.classes",
         "lambda f: lambda self, names, paths: [hash(path) % len(f(self, names, paths)) % 2 for path in paths]",
         "test_forks::test_items_have_the_teachers_class_and_a_test_the_truth"),
        ("labels as numbers left with the truth", labels, "_Renewal._numbers", "lambda f: lambda self, value: value",
         f"{PLACE}[numbers]"),
        ("groups of images left with the truth", labels, "_Renewal._is_grouped", "lambda f: lambda self, groups: False",
         f"{PLACE}[paths by class]"),
        ("shots drawn in the order of their classes", labels, "_drawn", "lambda f: _draw", f"{PLACE}[a pickle]"),
        ("training images in the order of the list", labels, "_shuffled", "lambda f: lambda items, seed: list(items)",
         f"{PLACE}[the place in the list]"),
        ("class weights taken", pseudo, "DistilledStep.loss",
         "lambda f: lambda self, name, input, target, weight=None, *a, **k: f(self, name, input, target, None, *a, **k)",
         "test_pseudo_labels::test_class_weights_are_refused"),
        ("label smoothing not said", pseudo, "DistilledStep.note",
         "lambda f: lambda self, name, what: f(self, name, what) if name != 'label smoothing' else None",
         "test_pseudo_labels::test_every_way_to_call_it_gives_the_formula"),
        ("a teacher that is a little off", pseudo, "DistilledStep.__init__",
         "lambda f: lambda self, t, *a, **k: f(self, t * 1.0001, *a, **k)",
         "test_forks::test_loss_and_gradient_of_what_is_learned_are_those_of_the_formula"),
        ("any checkpoint resumed", "trainers/wrapped.py", "DistilledTrainer._kdpl_facts", "lambda f: lambda self: {}",
         "test_forks::test_a_run_with_labels_or_of_another_seed_or_teacher_is_not_resumed"),
        ("a trainer without cross-entropy saved", "trainers/wrapped.py", "DistilledTrainer._kdpl_check_distilled",
         "lambda f: lambda self: None", "test_forks::test_a_trainer_without_cross_entropy_is_refused"),
        ("best_val taken", "trainers/wrapped.py", "DistilledTrainer.check_cfg",
         "lambda f: lambda self, cfg: (c := cfg.clone(), c.defrost(), setattr(c.TEST, 'FINAL_MODEL', ''), f(self, c))[-1]",
         "test_forks::test_what_a_wrapped_trainer_cannot_do_is_refused_before_anything_is_loaded"
         "[options2-chooses by labels of validation images]"),
        ("the truth of training images outside a test", labels, "TeacherLabels.at_work",
         "lambda f: lambda self, tested='': f(self, tested or 'train_x')", f"{PLACE}[train_x]"),
        ("the second batch with rows of the first", pseudo, "DistilledStep.labels",
         "lambda f: lambda self, c, first=0: f(self, c)",
         "test_pseudo_labels::test_two_batches_of_a_step_have_rows_of_their_own"),
        ("kdpl.extend_cfg in another place", "kdpl/install.py", "_extension",
         "lambda f: lambda *a: (f(*a)[0] + 1, f(*a)[1])",
         "test_forks_install::test_the_three_changes_stand_where_the_documentation_says"),
        # placement
        ("the teacher's logits left on the CPU", teacher, "Teacher.logits", "lambda f: lambda self, x, s: f(self, x, s).cpu()",
         f"{CARD}[steps]"),
        ("features of views left on the CPU", "kdpl/distill/views.py", "ViewFeatures.get", "lambda f: lambda *a: f(*a).cpu()",
         f"{CARD}[others]"),
        # files and the page
        ("outputs that take any folder", "kdpl/common/outputs.py", "check_folder", "lambda f: lambda *a, **k: None",
         "test_outputs::test_a_folder_with_a_file_of_others_is_refused_and_one_of_the_same_command_is_not"),
        ("formulas in cells", "kdpl/common/safe_text.py", "to_cell", "lambda f: str",
         "test_safe_text::test_a_cell_is_no_formula_and_reads_back_the_same"),
    ]  # fmt: skip


MUTATIONS = [Mutation(name, file, target, wrong, (test,)) for name, file, target, wrong, test in _all()]
