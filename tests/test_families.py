"""Five checks for every registered family, on tiny random pipelines, against the stock pipeline's own behaviour."""

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from dticli import families
from dticli.concept import FreeWord, embedding_modules, place, table, vector_names
from dticli.families import Family
from dticli.families.shape import Diffusion, Frame
from tests import tiny

PROMPTS = ["a photo of <dog> on grass", "<dog> in the snow"]
EOS = {"public": 2, "true": tiny.CLIP_EOS}


def family_of(pipe: Any) -> Family:
    return families.of_index({"_class_name": type(pipe).__name__}, "tiny")


# Which row of the table each tiny pipeline belongs to.
ROWS = {"sd1": "sd", "sd2": "sd", "sdxl": "sdxl"}


def variants() -> list[Any]:
    """Every tiny pipeline; CLIP encoders with the public configs' end-of-text id and with the true one."""
    found = []
    for case in tiny.cases(*ROWS):
        name = case.values[0]
        has_clip = "eos_token_id" in inspect.signature(tiny.TINY[name]).parameters
        for label, eos in (EOS if has_clip else {"": None}).items():
            found.append(pytest.param((name, eos), marks=case.marks, id=f"{name}-{label}".strip("-")))
    return found


@pytest.fixture(params=variants())
def pipe(request: pytest.FixtureRequest) -> Any:
    name, eos = request.param
    built = tiny.build(name, eos_token_id=eos)
    built.tiny_name = name
    return built


def words(pipe: Any, *names: str, vectors: int = 1, seed: int = 0) -> list[FreeWord]:
    """Words with random rows as long as the vocabulary's."""
    made = []
    for number, name in enumerate(names):
        rows = {}
        for encoder in family_of(pipe).encoders:
            weight = table(pipe, encoder)
            generator = torch.Generator().manual_seed(seed + number)
            direction = torch.nn.functional.normalize(
                torch.randn(vectors, weight.shape[1], generator=generator), dim=-1
            )
            rows[encoder.key] = (direction * weight.norm(dim=-1).mean()).requires_grad_()
        made.append(FreeWord(name, rows))
    return made


def frames(pipe: Any, count: int) -> list[Frame]:
    side = tiny.FAMILIES[pipe.tiny_name].size
    return [Frame((side * 3, side * 2), (side, 0), (side, side))] * count


def tensors(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested dicts and lists, with where it stands."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from tensors(each, f"{path}/{key}")
    elif isinstance(value, list | tuple):
        for key, each in enumerate(value):
            yield from tensors(each, f"{path}/{key}")


def test_every_family_has_a_tiny_pipeline() -> None:
    """A new row in the table without a pipeline to test it fails here."""
    built = {name: family_of(tiny.build(name)).name for name in ROWS}
    assert built == ROWS
    assert set(ROWS.values()) == {family.name for family in families.TABLE}


def test_a_word_is_one_id_a_vector_in_every_tokenizer(pipe: Any) -> None:
    """Inside a sentence and against punctuation, each vector's name is one new token; the base tokenizer is put back."""
    family = family_of(pipe)
    before = {encoder.tokenizer: len(getattr(pipe, encoder.tokenizer)) for encoder in family.encoders}
    with place(pipe, family.encoders, words(pipe, "<dog>", vectors=2)):
        for encoder in family.encoders:
            tokenizer = getattr(pipe, encoder.tokenizer)
            ids = tokenizer.convert_tokens_to_ids(vector_names("<dog>", 2))
            for text in ("a photo of <dog><dog>_1, on grass", "toy's <dog> <dog>_1."):
                found = tokenizer(text, add_special_tokens=False).input_ids
                assert [found.count(each) for each in ids] == [1, 1]
    assert before == {encoder.tokenizer: len(getattr(pipe, encoder.tokenizer)) for encoder in family.encoders}


def test_gradients_reach_every_row_of_every_encoder(pipe: Any) -> None:
    """The denoiser's output depends on each vector of the word through each encoder."""
    family, (word,) = family_of(pipe), words(pipe, "<dog>", vectors=2)
    code = family.code
    with place(pipe, family.encoders, [word]) as placement:
        conditioning = code.encode(pipe, [placement.expand(each) for each in PROMPTS], frames(pipe, 2))
        noisy, level = noisy_input(pipe, 2)
        code.predict(pipe, noisy, level, conditioning).square().sum().backward()
    for rows in word.rows.values():
        assert rows.grad is not None
        assert rows.grad.isfinite().all()
        assert (rows.grad.norm(dim=-1) > 0).all()


def noisy_input(pipe: Any, count: int) -> tuple[Tensor, Tensor]:
    code, side = family_of(pipe).code, tiny.FAMILIES[pipe.tiny_name].size
    pixels = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    clean = code.to_latents(pipe, code.posterior(pipe, pixels)[0])
    process = code.process(pipe)
    level = process.levels(torch.linspace(0.2, 0.7, count))
    return process.add_noise(
        clean, torch.randn(clean.shape, generator=torch.Generator().manual_seed(1)), level
    ), level


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_placed_rows_condition_like_rows_in_the_table(pipe: Any, dtype: torch.dtype) -> None:
    """Placing two words of two vectors gives the bits that writing them into grown tables gives."""
    family, made = family_of(pipe), words(pipe, "<dog>", "<cat>", vectors=2)
    prompts = [*PROMPTS, "<cat> and <dog>"]
    for encoder in family.encoders:
        getattr(pipe, encoder.component).to(dtype)
    with torch.no_grad(), place(pipe, family.encoders, made) as placement:
        expanded = [placement.expand(prompt) for prompt in prompts]
        placed = dict(tensors(family.code.encode(pipe, expanded, frames(pipe, 3))))
    write_into_tables(pipe, family, made)
    with torch.no_grad():
        stock = dict(tensors(family.code.encode(pipe, expanded, frames(pipe, 3))))
    assert placed.keys() == stock.keys()
    for path, value in placed.items():
        assert torch.equal(value, stock[path]), path


def write_into_tables(pipe: Any, family: Family, made: list[FreeWord]) -> None:
    """What stock loaders do: add tokens, grow the table if it must, write the rows."""
    for encoder in family.encoders:
        tokenizer, text_encoder = getattr(pipe, encoder.tokenizer), getattr(pipe, encoder.component)
        names = [name for word in made for name in vector_names(word.name, 2)]
        if encoder.lstrip:
            from tokenizers import AddedToken

            tokenizer.add_tokens([AddedToken(name, lstrip=True, normalized=False) for name in names])
        else:
            tokenizer.add_tokens(names)
        size = max(len(tokenizer), len(text_encoder.get_input_embeddings().weight))
        text_encoder.resize_token_embeddings(size, mean_resizing=False)
        rows = torch.cat([word.rows[encoder.key].detach() for word in made])
        for module in embedding_modules(text_encoder):
            module.weight.data[tokenizer.convert_tokens_to_ids(names)] = rows.to(module.weight.dtype)


def test_the_denoiser_receives_in_training_what_the_pipeline_gives_it(pipe: Any) -> None:
    """Every argument tensor of the denoiser is the one `pipe(...)` passes for the sample's sizes and crop."""
    family, made, frame = family_of(pipe), words(pipe, "<dog>"), frames(pipe, 1)[0]
    seen: list[Any] = []
    denoiser = family.code.denoiser(pipe)
    handle = denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
    )
    # One step of guidance 1: the denoiser runs once, on the prompts alone.
    options = tiny.call(pipe.tiny_name, steps=1) | {"guidance_scale": 1.0} | family.code.call_options(frame)
    with torch.no_grad(), place(pipe, family.encoders, made) as placement:
        prompts = [placement.expand(prompt) for prompt in PROMPTS]
        pipe(prompt=prompts, **options)
        stock = bound(denoiser, *seen.pop(0))
        seen.clear()
        conditioning = family.code.encode(pipe, prompts, [frame, frame])
        noisy, level = as_training_input(pipe, stock)
        family.code.predict(pipe, noisy, level, conditioning)
    ours = bound(denoiser, *seen.pop(0))
    handle.remove()
    ours_tensors, stock_tensors = dict(tensors(ours)), dict(tensors(stock))
    assert ours_tensors.keys() == stock_tensors.keys()
    for path, value in stock_tensors.items():
        assert torch.equal(ours_tensors[path], value.expand_as(ours_tensors[path])), path


def bound(module: torch.nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    """Arguments by name, without those that are None anyway."""
    arguments = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    return {name: value for name, value in arguments.items() if value is not None}


def as_training_input(pipe: Any, stock: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The pipeline's noisy latents and timestep, as `predict` takes them."""
    noisy = next(value for name, value in stock.items() if name in ("sample", "hidden_states"))
    return noisy, stock["timestep"].expand(len(noisy))


def test_an_oracle_of_the_training_target_makes_the_pipeline_draw_the_image(
    pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A denoiser that returns our target leads the stock sampler to our latent, and its decoder to our picture."""
    family, frame = family_of(pipe), frames(pipe, 1)[0]
    code, side = family.code, tiny.FAMILIES[pipe.tiny_name].size
    pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        raw = code.posterior(pipe, pixels)[0]
    clean, process = code.to_latents(pipe, raw), code.process(pipe)

    def oracle(sample: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor]:
        level = as_level(process, timestep).expand(1)
        keep = process.add_noise(torch.ones_like(clean), torch.zeros_like(clean), level)
        spoil = process.add_noise(torch.zeros_like(clean), torch.ones_like(clean), level)
        return (process.target(clean, (sample - keep * clean) / spoil, level),)

    monkeypatch.setattr(code.denoiser(pipe), "forward", oracle)
    if "set_alpha_to_one" in pipe.scheduler.config:
        # As shipped, these samplers stop at the lowest noise level instead of at none.
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, set_alpha_to_one=True)
    options = tiny.call(pipe.tiny_name, steps=20) | {"guidance_scale": 1.0} | code.call_options(frame)
    with torch.no_grad():
        latent = pipe(prompt=["a photo of dog"], **options).images
        picture = pipe(prompt=["a photo of dog"], **options | {"output_type": "pt"}).images
        decoded = pipe.vae.decode(raw, return_dict=False)[0]
    assert (latent - clean).norm() / clean.norm() < 1e-4
    assert (picture - (decoded / 2 + 0.5).clamp(0, 1)).abs().max() < 1e-3


def as_level(process: Any, timestep: Tensor) -> Tensor:
    """The noise level a timestep of the sampler stands for; some samplers pass whole steps as floats."""
    return timestep.long() if isinstance(process, Diffusion) else timestep


def test_seeing_a_word_that_is_cut_off_is_noticed(pipe: Any) -> None:
    """`reached` tells whether the encoders saw the word: not when it is absent, and not beyond their limit."""
    family, (word,) = family_of(pipe), words(pipe, "<dog>", vectors=2)
    with torch.no_grad(), place(pipe, family.encoders, [word]) as placement:
        for prompt, seen in (("a <dog>", True), ("a dog", False), ("grass " * 2000 + "<dog>", False)):
            family.code.encode(pipe, [placement.expand(prompt)], frames(pipe, 1))
            assert placement.reached(word) is seen
