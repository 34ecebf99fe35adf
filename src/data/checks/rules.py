"""The rules that a dataset is checked against: severity, message and remedy of each."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

ERROR, WARNING = "error", "warning"
MIN_TRAIN_IMAGES = 20  # an object or client with fewer can hardly learn what is normal

Violation = tuple[str, str]  # key of RULES, and the file or object with details

# severity, noun, fault, remedy: a message reads "<count> <noun>s <fault>. <remedy>"
RULES = {
    "unreadable-image": (ERROR, "image", "that cannot be read",
        "A run stops there: replace or remove the file."),
    "unreadable-mask": (ERROR, "mask", "that cannot be read",
        "A run stops there: replace or remove the file."),
    "missing-mask": (ERROR, "mask", "listed in a table but missing",
        "A run stops there: correct the name, or leave the cell empty."),
    "mask-size": (ERROR, "mask", "of a different size than its image",
        "A run stops there: redraw the mask at the size of the image."),
    "unknown-value": (ERROR, "mask", "with a value that has no entry in defects_config.json",
        "A run stops there: add the entry to the file in the object folder."),
    "several-values": (ERROR, "mask", "with several values",
        "A run stops there: save one mask per defect, with one value, and 0 elsewhere."),
    "leak": (ERROR, "test image", "with the same pixels as a training image",
        "The metrics come out too high: keep the image in one split only."),
    "duplicate": (WARNING, "training image", "with the same pixels as another",
        "The copies may go to different clients: keep one of them."),
    "unmasked": (WARNING, "defective image", "without a mask",
        "Image metrics count the image, pixel metrics leave it out. Draw a mask if you can."),
    "empty-mask": (WARNING, "mask", "without a marked pixel",
        "Image metrics count the image, pixel metrics leave it out unless another of its masks is "
        "marked. Draw the mask if you can."),
    "few-images": (WARNING, "object", f"with fewer than {MIN_TRAIN_IMAGES} training images",
        "Add images, or use few clients: each has to learn what is normal."),
    "no-normal": (WARNING, "object", "without normal test images",
        "The object gets no AUROC: move some normal images to the test split."),
    "no-defect": (WARNING, "object", "without defective test images",
        "The object gets no AUROC: add images of defects to the test split."),
    "no-row": (WARNING, "image", "without a row in metadata.csv",
        "A partition by a column needs a value for every image: add the row."),
    "stale-row": (WARNING, "row", "of metadata.csv without an image",
        "A run ignores the row: correct its path, which is relative to the file, or delete it."),
    "unused-image": (WARNING, "image file", "outside the layout",
        "A run ignores the file: move it to where the layout expects it, or leave it."),
}  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """All violations of one rule, or an error that prevents a split from opening."""

    severity: str  # ERROR or WARNING
    message: str  # what is wrong and what to do
    locations: tuple[str, ...] = ()


def group_violations(errors: Iterable[str], violations: Iterable[Violation]) -> tuple[Problem, ...]:
    """Return one problem per distinct error, then one per violated rule, in the order of RULES."""
    locations: dict[str, list[str]] = defaultdict(list)
    for rule, location in violations:
        locations[rule].append(location)
    problems = [Problem(ERROR, error) for error in dict.fromkeys(errors)]
    for rule, (severity, noun, fault, remedy) in RULES.items():
        if count := len(locations[rule]):
            message = f"{count} {noun}{'s' * (count != 1)} {fault}. {remedy}"
            problems.append(Problem(severity, message, tuple(locations[rule])))
    return tuple(problems)
