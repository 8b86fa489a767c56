"""The tiny pipelines are what they claim to be: quick, reproducible, complete, and moved by their prompt."""

import random

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from . import CLIP_EOS, FAMILIES, WORDS, build, call, cases
from .tokenizers import TOKENIZERS

every_pipeline = pytest.mark.parametrize("name", cases())


def latents(pipe: DiffusionPipeline, name: str, prompt: str = "a photo of dog") -> torch.Tensor:
    return pipe(prompt=prompt, **call(name))[0]


def models(pipe: DiffusionPipeline) -> dict[str, torch.nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


@every_pipeline
def test_two_steps_survive_a_folder(name, tmp_path):
    """A pipeline saved to a folder and loaded by the stock loader makes the same latents.

    But for rounding: weights mapped from a file lie where its header ends, and CPU kernels round the last bit by that.
    """
    pipe = build(name)
    expected = latents(pipe, name)
    pipe.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path, **dict.fromkeys(FAMILIES[name].absent))
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is type(pipe)
    assert torch.isfinite(expected).all()
    torch.testing.assert_close(latents(loaded, name), expected, rtol=1e-4, atol=1e-4)
    assert sum(file.stat().st_size for file in tmp_path.rglob("*")) < 5 * 2**20


@every_pipeline
def test_picture_of_the_smallest_size(name):
    """The picture has the size that was asked for, and is not of one colour."""
    size = FAMILIES[name].size
    picture = build(name)(prompt="a photo of dog", **call(name, "pil"))[0][0]
    if isinstance(picture, list):  # a video
        (picture,) = picture
    assert picture.size == (size, size)
    assert max(high - low for low, high in picture.getextrema()) > 0


@every_pipeline
def test_every_encoder_moves_the_latents(name):
    """Turning the row of `dog` around in any one encoder makes other latents, so a test on conditioning can fail."""
    pipe = build(name)
    expected = latents(pipe, name)
    for encoder, tokenizer in FAMILIES[name].encoders.items():
        table = getattr(pipe, encoder).get_input_embeddings().weight.data
        tokenizer = getattr(pipe, tokenizer)
        (dog,) = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(" dog"))
        table[dog] *= -1
        assert not torch.allclose(latents(pipe, name), expected, atol=1e-4), encoder
        table[dog] *= -1


@every_pipeline
def test_build_is_a_function_of_the_seed(name):
    """The same seed gives the same weights and another seed others; no random state is disturbed."""
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    first, again, other = (models(build(name, seed=seed)) for seed in (0, 0, 1))
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    for part in first:
        weights = first[part].state_dict()
        assert all(torch.equal(weight, again[part].state_dict()[key]) for key, weight in weights.items())
        assert any(not torch.equal(weight, other[part].state_dict()[key]) for key, weight in weights.items())


@every_pipeline
def test_every_weight_is_set(name):
    """No weight is left to what the memory happened to hold."""
    torch.use_deterministic_algorithms(True)  # makes torch fill uninitialised memory with NaN
    try:
        parts = models(build(name))
    finally:
        torch.use_deterministic_algorithms(False)
    for part, model in parts.items():
        assert not model.training, part
        unset = [key for key, weight in model.state_dict().items() if not torch.isfinite(weight).all()]
        assert not unset, part


@every_pipeline
def test_rows_beyond_the_tokenizer(name):
    """T5, UMT5 and Qwen have the public models' number of spare rows, the other encoders none."""
    spare = {
        "t5": 32128 - 32100,
        "umt5": 256384 - 256300,
        "qwen3": 151936 - 151669,
        "qwen3_vl": 151936 - 151669,
        "qwen2_5_vl": 152064 - 151665,
    }
    pipe = build(name)
    for encoder, tokenizer in FAMILIES[name].encoders.items():
        model = getattr(pipe, encoder)
        rows = len(model.get_input_embeddings().weight)
        assert rows - len(getattr(pipe, tokenizer)) == spare.get(model.config.model_type, 0)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_words_are_single_pieces(kind):
    """Every listed word is one piece after a space; no text has an id beyond the tokenizer's length."""
    tokenizer = TOKENIZERS[kind]()
    assert [len(tokenizer.tokenize(" " + word)) for word in WORDS] == [1] * len(WORDS)
    assert max(tokenizer("Zażółć <gęślą> 日本 #42 'quite'!").input_ids) < len(tokenizer)


def test_clip_ids_stand_where_the_public_ones_do():
    """`!` is id 0 and the end of text is the highest id, with the start of text just below."""
    tokenizer = TOKENIZERS["clip"]()
    assert tokenizer.convert_tokens_to_ids("!") == 0
    assert tokenizer.bos_token_id == CLIP_EOS - 1
    assert tokenizer.eos_token_id == CLIP_EOS == len(tokenizer) - 1


def test_qwen_image_cuts_off_its_template_and_no_more():
    """The tokens Qwen-Image counts as its own template are exactly that, so the prompt is kept whole."""
    pipe = build("qwen_image")
    prompt = "a photo of dog"
    states, _ = pipe.encode_prompt(prompt)
    kept = pipe.tokenizer(prompt + pipe.prompt_template_encode.partition("{}")[2]).input_ids
    assert states.shape[1] == len(kept)


def test_eos_token_id_needs_a_clip():
    """An option that a family has no use for is refused, not ignored."""
    with pytest.raises(TypeError, match="eos_token_id"):
        build("sana", eos_token_id=CLIP_EOS)


@pytest.mark.parametrize(("eos_token_id", "sees_what_follows"), [(None, False), (CLIP_EOS, True)])
def test_pooling_of_an_added_token(eos_token_id, sees_what_follows):
    """The public configs' id makes pooling stop at an added token; the true id lets it see the rest."""
    pipe = build("sdxl", eos_token_id=eos_token_id)
    pipe.tokenizer_2.add_tokens(["<dog>"])
    pipe.text_encoder_2.resize_token_embeddings(len(pipe.tokenizer_2), mean_resizing=False)
    prompts = ["a photo of <dog> on grass", "a photo of <dog> in snow with a red hat"]
    ids = pipe.tokenizer_2(prompts, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        one, two = pipe.text_encoder_2(ids).text_embeds
    assert torch.equal(one, two) != sees_what_follows
