"""From a bundle to a prompt learner on its CLIP: checked before weights are read, and compared with them after."""

from yacs.config import CfgNode

from kdpl.classifier.bundle import Bundle, BundleError
from kdpl.clip.model import Clip
from kdpl.clip.names import Architecture
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
        BundleError: the CLIP's weights are not those that the prompts were learned for, or the prompts do not fit.
    """
    if clip.weights_digest != bundle.backbone_sha256:
        raise BundleError(
            f"The weights of '{name}' are not those that the prompts were learned for ('{bundle.backbone}', SHA-256 "
            f"{bundle.backbone_sha256[:12]}...). {way_out}"
        )
    student = bundle.student_class(clip, options, bundle.classnames, bundle.template or DEFAULT)
    try:
        load_learned(student.learned.float(), bundle.parameters, "the bundle")
    except CheckpointError as error:
        raise _misfit(bundle, name, error) from error
    return student.requires_grad_(False).eval().to(clip.device)


def _misfit(bundle: Bundle, name: str, error: Exception) -> BundleError:
    return BundleError(f"The prompts of {bundle.trainer} for '{bundle.backbone}' do not fit '{name}': {error}")
