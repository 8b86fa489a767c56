"""The example photos and the small API to them."""

import subprocess
import sys
from random import Random

import pytest
from PIL import Image

from dticli import bundled
from dticli.bundled.recipe import photos
from dticli.bundled.world import words
from dticli.errors import InputError
from dticli.photos import albums, captions
from dticli.photos.captions import Captioning


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


def test_masks_and_captions_are_laid_out_as_train_reads_them(shapes, tmp_path):
    """A mask is white where the photo of the same name shows the subject; a caption names what is around it, not what it is."""
    subject = bundled.subject("dog")
    folder = photos.lay_masks(subject, shapes, tmp_path / "masks")
    pictured = photos._five(subject, shapes)
    for photo, (picture, mask) in zip(bundled.photos("dog"), pictured, strict=True):
        assert Image.open(folder / photo.name).convert("L").tobytes() == mask.tobytes()
        assert picture.size == mask.size == (128, 128)
    album = albums.read(bundled.photos("dog")[0].parent, str(folder))
    assert all(photo.mask for photo in album.photos)
    file = photos.lay_captions(subject, tmp_path / "dog.jsonl")
    said = captions.read(album.photos, Captioning("<dog>", list_file=str(file)))
    said.require_usable()
    for photo, scene in zip(
        bundled.photos("dog"), photos._scenes(subject, Random("photos dog")), strict=True
    ):
        texts = said.texts[photo]
        assert len(texts) > 1
        assert all("<dog>" in text and "dog" not in text.replace("<dog>", "") for text in texts)
        spoken = words.PLACES.get(scene.background.place, scene.background.colours)
        assert all(any(one in text for one in spoken) for text in texts)
