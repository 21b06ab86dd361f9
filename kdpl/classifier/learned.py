"""From a bundle to a prompt learner on its CLIP: checked before weights are read, and compared with them after."""

from yacs.config import CfgNode

from kdpl.classifier.bundle import Bundle, BundleError
from kdpl.clip.model import Clip
from kdpl.clip.names import Architecture
from kdpl.clip.openclip.design import design_of
from kdpl.config.influence import design_differences
from kdpl.config.merging import learner_options
from kdpl.students import Student
from kdpl.text.templates import DEFAULT
from kdpl.training.checkpoint import CheckpointError, load_learned


def fitting_options(bundle: Bundle, architecture: Architecture, name: str) -> CfgNode:
    """Return the options of a bundle's prompt learner, which fit the CLIP `name`.

    Raises:
        BundleError: they do not, or the prompts take images of another size.
    """
    size, side = bundle.preprocessing.size, architecture.resolution
    try:
        if size != (side, side):
            raise ValueError(f"the prompts take images of {size}, '{name}' of {(side, side)}")
        options = learner_options(bundle.student_class.node, bundle.options)
        bundle.student_class.check(options, architecture, name)
    except ValueError as error:
        raise _misfit(bundle, name, error) from error
    return options


def learned_student(bundle: Bundle, clip: Clip, options: CfgNode, name: str, way_out: str) -> Student:
    """Return the prompt learner of a bundle on its CLIP, with what was learned, frozen.

    Args:
        options: of `fitting_options`.
        name: of the CLIP, for errors.
        way_out: the end of the message if it is another CLIP than that of the prompts.

    Raises:
        BundleError: the CLIP is not the one that the prompts were learned for, by its weights and, as far as the bundle has it,
            its design; or the prompts do not fit.
    """
    if clip.weights_digest != bundle.backbone_sha256:
        raise BundleError(
            f"The weights of '{name}' are not those that the prompts were learned for ('{bundle.backbone}', SHA-256 "
            f"{bundle.backbone_sha256[:12]}...). {way_out}"
        )
    _refuse_other_design(bundle, clip, name, way_out)
    student = bundle.student_class(clip, options, bundle.classnames, bundle.template or DEFAULT)
    try:
        load_learned(student.learned.float(), bundle.parameters, "the bundle")
    except CheckpointError as error:
        raise _misfit(bundle, name, error) from error
    return student.requires_grad_(False).eval().to(clip.device)


def _refuse_other_design(bundle: Bundle, clip: Clip, name: str, way_out: str) -> None:
    """Refuse a CLIP with the right weights that computes something else; bundles of version 0.2 have only its preprocessing."""
    found = design_differences(bundle.backbone_design, design_of(clip), "in the bundle")
    if not found and clip.preprocessing != bundle.preprocessing:
        found = {"": f"preprocessing: {bundle.preprocessing} in the bundle, {clip.preprocessing} now"}
    if found:
        raise BundleError(
            f"'{name}' has the weights that the prompts were learned for, but computes something else: "
            f"{'; '.join(found.values())}. {way_out}"
        )


def _misfit(bundle: Bundle, name: str, error: Exception) -> BundleError:
    return BundleError(f"The prompts of {bundle.trainer} for '{bundle.backbone}' do not fit '{name}': {error}")
