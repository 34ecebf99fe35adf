"""fedpatchcore settings: all settings, one, or a section; the reference page is its output."""

import pytest

from fl.config import CHECKOUT, default_settings

PAGE = CHECKOUT / "docs" / "reference" / "settings.md"


def test_all_settings_are_listed_in_80_columns(cli) -> None:
    lines = cli("settings").out.splitlines()
    names = [line.partition(" = ")[0] for line in lines if line and not line.startswith(" ")]
    assert names == list(default_settings())
    assert max(map(len, lines)) <= 80


def test_a_setting_is_shown_with_meaning_default_and_bounds(cli) -> None:
    words = " ".join(cli("settings", "model.coreset-percentage").out.split())
    assert words.startswith("model.coreset-percentage = 0.1 Fraction of patches kept")
    assert words.endswith("Values: a number above 0 and at most 1.")


def test_a_section_is_shown_alone(cli) -> None:
    names = [line for line in cli("settings", "merge").out.splitlines() if line[:1].strip()]
    assert len(names) > 3
    assert all(name.startswith("merge.") for name in names)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("privacy.epsilom", "privacy.epsilom: unknown setting; did you mean privacy.epsilon?"),
        ("merg", "merg: unknown setting; did you mean merge?"),
        ("data.even-light", "data.even-light: renamed to data.normalize-brightness"),
    ],
)
def test_unknown_key_is_refused_with_the_nearest(cli, key: str, message: str) -> None:
    assert message in cli("settings", key).sentence()


def test_reference_page_is_the_output(cli) -> None:
    output = cli("settings", "--format", "markdown").out
    assert PAGE.read_text("utf-8") == output, f"write it anew: {PAGE.name}"
