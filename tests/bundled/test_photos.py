"""The example photos and the small API to them."""

import subprocess
import sys

import pytest
from PIL import Image

from dticli import bundled
from dticli.errors import InputError


@pytest.mark.parametrize(("in_the_world", "tuning", "reporting"), [(True, 4, 12), (False, 4, 8)])
def test_four_subjects_tune_and_the_rest_reports(in_the_world, tuning, reporting):
    """Settings are tuned on other subjects, and other nouns, than results are reported on."""
    subjects = [subject for subject in bundled.subjects() if bool(subject.look) == in_the_world]
    roles = [subject.role for subject in subjects]
    assert (roles.count("tuning"), roles.count("reporting")) == (tuning, reporting)
    nouns = {
        role: {each.class_word for each in subjects if each.role == role} for role in ("tuning", "reporting")
    }
    assert not nouns["tuning"] & nouns["reporting"]
    assert len({subject.name for subject in bundled.subjects()}) == 28


@pytest.mark.parametrize("subject", bundled.subjects(), ids=lambda subject: subject.name)
def test_every_subject_has_five_different_photos(subject):
    """Five square RGB pictures of 128 px, no two alike."""
    pictures = [Image.open(file).convert("RGB") for file in bundled.photos(subject.name)]
    assert [picture.size for picture in pictures] == [(128, 128)] * 5
    assert len({picture.tobytes() for picture in pictures}) == 5


def test_photos_are_small():
    """All photos together stay below two megabytes."""
    files = [file for subject in bundled.subjects() for file in bundled.photos(subject.name)]
    assert sum(file.stat().st_size for file in files) < 2_000_000


def test_an_unknown_subject_names_the_nearest():
    """A misspelt subject is answered with the one that was probably meant."""
    with pytest.raises(InputError, match="did you mean 'elephant'"):
        bundled.photos("elefant")


def test_a_strange_subject_lists_all():
    """Where nothing is near, all subjects are named."""
    with pytest.raises(InputError, match="choose one of dog, teapot"):
        bundled.photos("xylophone")


def test_the_api_needs_no_torch():
    """Listing photos must not cost a torch import."""
    code = "import sys; from dticli import bundled; bundled.photos('dog'); bundled.model_folder(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
