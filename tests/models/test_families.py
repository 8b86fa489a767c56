"""Checks for every registered family, on tiny random pipelines, against the stock pipeline's own behaviour."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, SCMScheduler
from scipy.stats import norm as gaussian
from tokenizers import AddedToken
from torch import Tensor
from transformers import ProcessorMixin

from dticli.errors import ModelError
from dticli.models import families
from dticli.models.families import Family
from dticli.models.families.shape import Conditioning, Diffusion, Flow, Frame, logit_normal, uniform
from dticli.words import norms
from dticli.words.placement import FreeWord, embedding_modules, place, table, tables, vector_names
from tests import tiny

PROMPTS = ["a photo of <dog> on grass", "<dog> in the snow"]
EOS = {"public": 2, "true": tiny.CLIP_EOS}


def family_of(pipe: Any) -> Family:
    return families.of_index({"_class_name": type(pipe).__name__, **pipe.config}, "tiny")


def variants() -> list[Any]:
    """Every tiny pipeline; CLIP encoders with the public configs' end-of-text id and with the true one."""
    found = []
    for case in tiny.cases():
        name = case.values[0]
        has_clip = "eos_token_id" in inspect.signature(tiny.TINY[name]).parameters
        for label, eos in (EOS if has_clip else {"": None}).items():
            found.append(pytest.param((name, eos), marks=case.marks, id=f"{name}-{label}".strip("-")))
    return found


def built(name: str, eos: int | None) -> Any:
    pipe = tiny.build(name, eos_token_id=eos)
    pipe.tiny_name = name
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.requires_grad_(False)
    return pipe


shared = cache(built)


@pytest.fixture(params=variants())
def pipe(request: pytest.FixtureRequest) -> Any:
    """A pipeline that tests read and leave as they found it."""
    return shared(*request.param)


@pytest.fixture(params=variants())
def own_pipe(request: pytest.FixtureRequest) -> Any:
    """A pipeline for one test alone, which may change it."""
    return built(*request.param)


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


def clean_latents(pipe: Any, count: int) -> tuple[Tensor, Tensor]:
    """The autoencoder's output for random pixels, and what the denoiser works on."""
    code, side = family_of(pipe).code, tiny.FAMILIES[pipe.tiny_name].size
    pixels = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        raw, _ = code.posterior(pipe, pixels)
        return raw, code.to_latents(pipe, raw)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor and number in nested dicts and lists, with where it stands."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from leaves(each, f"{path}/{key}")
    elif isinstance(value, list | tuple):
        for key, each in enumerate(value):
            yield from leaves(each, f"{path}/{key}")
    elif value is not None:
        yield path, torch.as_tensor(value)


def flat(value: Any) -> Tensor:
    """All numbers of a tensor, or of a list of tensors."""
    return torch.cat([each.flatten() for _, each in leaves(value)])


def like(value: Any, numbers: Tensor) -> Any:
    """`numbers` in the shape of a tensor, or of a list of tensors."""
    if isinstance(value, Tensor):
        return numbers.view(value.shape)
    parts = numbers.split([each.numel() for each in value])
    return [part.view(each.shape) for part, each in zip(parts, value, strict=True)]


@dataclass(frozen=True)
class Layout:
    """What `predict` does to latents on their way into the denoiser and out of it, found by sending indices through it.

    Attributes:
        inward: 1-based index of the latent at each place of the denoiser's first argument.
        outward: signed 1-based index of the denoiser's output at each place of the prediction.
        output: an output of the denoiser.
    """

    inward: Tensor
    outward: Tensor
    output: Any

    def read(self, argument: Any) -> Tensor:
        """Latents from the denoiser's first argument."""
        latents = torch.empty(self.outward.numel())
        latents[self.inward.long() - 1] = flat(argument).float()
        return latents.view(self.outward.shape)

    def write(self, prediction: Tensor) -> Any:
        """The denoiser's output that `predict` turns into `prediction`; zeros where it does not look."""
        numbers = torch.zeros(flat(self.output).numel())
        numbers[self.outward.abs().long().flatten() - 1] = (prediction * self.outward.sign()).flatten()
        return like(self.output, numbers)


@torch.no_grad()
def layout(pipe: Any, like_latents: Tensor, conditioning: Conditioning) -> Layout:
    code = family_of(pipe).code
    denoiser, seen = code.denoiser(pipe), {}
    stock = denoiser.forward

    def record(*args: Any, **kwargs: Any) -> tuple[Any]:
        seen["input"] = next(iter(inspect.signature(stock).bind(*args, **kwargs).arguments.values()))
        seen["output"] = stock(*args, **kwargs)[0]
        count = flat(seen["output"]).numel()
        return (like(seen["output"], torch.arange(1.0, count + 1)),)

    indices = torch.arange(1.0, like_latents.numel() + 1).view(like_latents.shape)
    level = code.process(pipe.scheduler).levels(torch.full((len(like_latents),), 0.5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(denoiser, "forward", record)
        outward = code.predict(pipe, indices, level, conditioning)
    assert sorted(flat(seen["input"]).tolist()) == sorted(indices.flatten().tolist())
    return Layout(flat(seen["input"]), outward, seen["output"])


def unguided(pipe: Any) -> dict[str, Any]:
    """Call options without which the denoiser would run on a negative prompt too.

    Where there is a scale for that alone, it is at rest without a negative prompt, and `guidance_scale` is an input; so it
    is where there is no negative prompt at all.
    """
    parameters = inspect.signature(type(pipe).__call__).parameters
    apart = "true_cfg_scale" in parameters or "negative_prompt" not in parameters
    return {} if apart else {"guidance_scale": 0.0}


def test_every_family_has_a_tiny_pipeline() -> None:
    """A new row in the table without a pipeline to test it fails here."""
    assert {family_of(shared(name, None)).name for name in tiny.TINY} == {row.name for row in families.TABLE}


def test_kin_run_the_code_of_another() -> None:
    """What is left out of the longest tests has its code run there by the pipeline it is named with."""
    modules = {name: family_of(shared(name, None)).module for name in tiny.TINY}
    assert {name: modules[other] for name, other in tiny.KIN.items()} == {
        name: modules[name] for name in tiny.KIN
    }
    assert {modules[case.values[0]] for case in tiny.distinct()} == {row.module for row in families.TABLE}


def test_encoders_are_those_of_the_pipeline(pipe: Any) -> None:
    """The row names each of the pipeline's text encoders and its tokenizer, less those it was saved without."""
    found = {encoder.component: encoder.tokenizer for encoder in family_of(pipe).encoders}
    assert found == tiny.FAMILIES[pipe.tiny_name].encoders


def test_a_word_is_one_id_a_vector_in_every_tokenizer(pipe: Any) -> None:
    """Inside a sentence and against punctuation, each vector's name is one new token; the base tokenizer is put back."""
    family = family_of(pipe)
    before = {encoder.tokenizer: len(getattr(pipe, encoder.tokenizer)) for encoder in family.encoders}
    with place(pipe, family.encoders, words(pipe, "<dog>", vectors=2)) as placement:
        for encoder in family.encoders:
            tokenizer, ids = getattr(pipe, encoder.tokenizer), placement.rows[encoder.key].ids
            for text in ("a photo of <dog><dog>__1, on grass", "toy's (<dog> <dog>__1)."):
                found = tokenizer(text, add_special_tokens=False).input_ids
                assert [sum(map(found.count, each)) for each in ids.T.tolist()] == [1, 1]
    assert before == {encoder.tokenizer: len(getattr(pipe, encoder.tokenizer)) for encoder in family.encoders}


def test_gradients_reach_every_row_of_every_encoder(pipe: Any) -> None:
    """The denoiser's output depends on each vector of the word through each encoder."""
    family, (word,) = family_of(pipe), words(pipe, "<dog>", vectors=2)
    code = family.code
    with place(pipe, family.encoders, [word]) as placement:
        conditioning = code.encode(pipe, [placement.expand(each) for each in PROMPTS], frames(pipe, 2))
        _, clean = clean_latents(pipe, 2)
        process = code.process(pipe.scheduler)
        level = process.levels(torch.linspace(0.2, 0.7, 2))
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
        prediction = code.predict(pipe, process.add_noise(clean, noise, level), level, conditioning)
    assert prediction.shape == clean.shape
    prediction.square().sum().backward()
    for rows in word.rows.values():
        assert rows.grad is not None
        assert rows.grad.isfinite().all()
        assert (rows.grad.norm(dim=-1) > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_placed_rows_condition_like_rows_in_the_table(own_pipe: Any, dtype: torch.dtype) -> None:
    """Placing two words of two vectors gives the bits that writing them into grown tables gives."""
    pipe, family = own_pipe, family_of(own_pipe)
    made = words(pipe, "<dog>", "<cat>", vectors=2)
    prompts = [*PROMPTS, "<cat> and <dog>", "<cat><dog>"]
    for encoder in family.encoders:
        getattr(pipe, encoder.component).to(dtype)
    with torch.no_grad(), place(pipe, family.encoders, made) as placement:
        expanded = [placement.expand(prompt) for prompt in prompts]
        placed = dict(leaves(family.code.encode(pipe, expanded, frames(pipe, 4))))
    write_into_tables(pipe, family, made)
    with torch.no_grad():
        stock = dict(leaves(family.code.encode(pipe, expanded, frames(pipe, 4))))
    assert placed.keys() == stock.keys()
    for path, value in placed.items():
        assert torch.equal(value, stock[path]), path


class TextProcessor(ProcessorMixin):
    """A processor like FLUX.2's, without the part for pictures."""

    def __init__(self, tokenizer: Any, chat_template: str | None = None) -> None:
        super().__init__(tokenizer, chat_template=chat_template)


@pytest.mark.parametrize("name", tiny.cases("flux2"))
def test_the_tokenizer_inside_of_a_processor_learns_the_word(name: str) -> None:
    """A pipeline that holds a processor gets the bits that it gets with the tokenizer alone, and its processor back."""
    pipe = built(name, None)
    family, made, tokenizer = family_of(pipe), words(pipe, "<dog>", vectors=2), pipe.tokenizer
    processor = TextProcessor(tokenizer, chat_template=tokenizer.chat_template)
    found = []
    for held in (tokenizer, processor):
        pipe.tokenizer = held
        with torch.no_grad(), place(pipe, family.encoders, made) as placement:
            prompts = [placement.expand(prompt) for prompt in PROMPTS]
            found.append(dict(leaves(family.code.encode(pipe, prompts, frames(pipe, 2)))))
            placement.require_read(family, PROMPTS)
    for path, value in found[0].items():
        assert torch.equal(value, found[1][path]), path
    assert pipe.tokenizer is processor
    assert "<dog>" not in tokenizer.get_vocab()


def write_into_tables(pipe: Any, family: Family, made: list[FreeWord]) -> None:
    """What stock loaders do: add tokens, grow the table if it must, write the rows."""
    for encoder in family.encoders:
        tokenizer, text_encoder = getattr(pipe, encoder.tokenizer), getattr(pipe, encoder.component)
        names = [name for word in made for name in vector_names(word.name, 2)]
        rows = torch.cat([word.rows[encoder.key].detach() for word in made])
        if encoder.spaced:
            names, rows = [*names, *(f" {name}" for name in names)], rows.repeat(2, 1)
        tokenizer.add_tokens([AddedToken(name, normalized=not encoder.spaced) for name in names])
        size = max(len(tokenizer), len(text_encoder.get_input_embeddings().weight))
        text_encoder.resize_token_embeddings(size, mean_resizing=False)
        for module in embedding_modules(text_encoder):
            module.weight.data[tokenizer.convert_tokens_to_ids(names)] = rows.to(module.weight.dtype)


def test_the_denoiser_receives_in_training_what_the_pipeline_gives_it(pipe: Any) -> None:
    """Every argument of the denoiser is the one `pipe(...)` passes for the sample's sizes, crop and default guidance."""
    family, made, frame = family_of(pipe), words(pipe, "<dog>"), frames(pipe, 1)[0]
    code, seen = family.code, []
    denoiser = code.denoiser(pipe)
    # Without guidance by a second prompt, the denoiser sees the prompts alone; its first step is looked at.
    options = tiny.call(pipe.tiny_name, steps=2) | unguided(pipe) | code.call_options(frame)
    with torch.no_grad(), place(pipe, family.encoders, made) as placement:
        prompts = [placement.expand(prompt) for prompt in PROMPTS]
        conditioning = code.encode(pipe, prompts, [frame, frame])
        found = layout(pipe, clean_latents(pipe, 2)[1], conditioning)
        handle = denoiser.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(bound(module, args, kwargs)), with_kwargs=True
        )
        pipe(prompt=prompts, **options)
        stock = seen.pop(0)
        seen.clear()
        level = first_level(pipe).expand(2)
        code.predict(pipe, found.read(next(iter(stock.values()))), level, conditioning)
        handle.remove()
    ours, theirs = dict(leaves(seen.pop(0))), dict(leaves(stock))
    assert ours.keys() == theirs.keys()
    for path, value in theirs.items():
        if path in ("/timestep", "/timesteps", "/t"):  # whole numbers there, 1000 sigma here
            torch.testing.assert_close(
                ours[path].float(), value.float().expand_as(ours[path]), rtol=1e-6, atol=1e-6
            )
        else:
            assert torch.equal(ours[path], value.expand_as(ours[path])), path


def first_level(pipe: Any) -> Tensor:
    """The noise level that the pipeline has just begun to draw from, (1,), as the family's process counts it."""
    time = pipe.scheduler.timesteps[:1]
    if not isinstance(family_of(pipe).code.process(pipe.scheduler), Flow):
        return time
    return part_of_noise(time) if isinstance(pipe.scheduler, SCMScheduler) else time / 1000


def part_of_noise(angle: Tensor) -> Tensor:
    """How much of cos(angle) x0 + sin(angle) n is noise."""
    return angle.sin() / (angle.cos() + angle.sin())


def bound(module: torch.nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    """Arguments by name, without those that are None anyway."""
    arguments = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    return {name: value for name, value in arguments.items() if value is not None}


def test_an_oracle_of_the_training_target_makes_the_pipeline_draw_the_image(
    pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A denoiser for which training loss is zero leads the stock sampler to the very latent that was trained on."""
    require_oracle_draws(pipe, monkeypatch)


@pytest.mark.parametrize("dynamic", [True, False], ids=["for the size", "fixed"])
@pytest.mark.parametrize("name", tiny.cases("cogview4"))
def test_the_time_told_is_the_one_before_the_shift(name: str, dynamic: bool) -> None:
    """CogView4's schedule moves noise levels and not the times it tells: at each of its steps, time and level belong together."""
    pipe = built(name, None)
    pipe.scheduler.register_to_config(use_dynamic_shifting=dynamic, shift=2.0)
    pipe.scheduler.set_shift(2.0)
    code, told = family_of(pipe).code, []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: told.append(kwargs["timestep"][0].item()), with_kwargs=True
    )
    steps = 4
    pipe(prompt=["a photo of dog"], **tiny.call(name, steps=steps) | unguided(pipe))
    drawn, levels = told[:], pipe.scheduler.sigmas[:steps]
    told.clear()
    conditioning = code.encode(pipe, ["a photo of dog"], frames(pipe, 1))
    for level in levels:
        code.predict(pipe, clean_latents(pipe, 1)[1], level.expand(1), conditioning)
    assert told == pytest.approx(drawn, rel=1e-5)
    assert drawn[1] != pytest.approx(1000 * levels[1].item(), rel=1e-2)


@pytest.mark.parametrize("name", tiny.cases("sdxl"))
def test_statistics_of_the_latents_are_learned_with(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So too where SDXL's autoencoder has means and deviations of its latents, which the pipeline undoes."""
    pipe = built(name, None)
    pipe.vae.register_to_config(latents_mean=[0.3, -0.2, 0.1, 0.0], latents_std=[1.5, 0.5, 2.0, 1.0])
    require_oracle_draws(pipe, monkeypatch)


def require_oracle_draws(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    family, frame = family_of(pipe), frames(pipe, 1)[0]
    code, decoded = family.code, []
    raw, clean = clean_latents(pipe, 1)
    with torch.no_grad():
        conditioning = code.encode(pipe, ["a photo of dog"], [frame])
    process, found = code.process(pipe.scheduler), layout(pipe, clean, conditioning)
    decode, signature = pipe.vae.decode, inspect.signature(code.denoiser(pipe).forward)

    def oracle(*args: Any, **kwargs: Any) -> tuple[Any]:
        arguments = signature.bind(*args, **kwargs).arguments
        level = sampled_level(pipe, process, arguments)
        keep = process.add_noise(torch.ones_like(clean), torch.zeros_like(clean), level)
        spoil = process.add_noise(torch.zeros_like(clean), torch.ones_like(clean), level)
        noise = (found.read(next(iter(arguments.values()))) - keep * clean) / spoil
        return (found.write(process.target(clean, noise, level)),)

    def record(latents: Tensor, **options: Any) -> Any:
        decoded.append(latents)
        return decode(latents, **options)

    monkeypatch.setattr(code.denoiser(pipe), "forward", oracle)
    monkeypatch.setattr(pipe.vae, "decode", record)
    if "set_alpha_to_one" in pipe.scheduler.config:
        # As shipped, these samplers stop at the lowest noise level instead of at none.
        ending = DDIMScheduler.from_config(pipe.scheduler.config, set_alpha_to_one=True)
        monkeypatch.setattr(pipe, "scheduler", ending)
    options = tiny.call(pipe.tiny_name, "pt", steps=20) | unguided(pipe) | code.call_options(frame)
    pipe(prompt=["a photo of dog"], **options)
    assert (decoded[0] - raw).norm() / raw.norm() < 1e-4


def sampled_level(pipe: Any, process: Any, arguments: dict[str, Any]) -> Tensor:
    """The noise level the sampler is at; some diffusion samplers pass whole steps as floats."""
    if isinstance(process, Diffusion):
        return arguments["timestep"].long().expand(1)
    step = pipe.scheduler.step_index or 0
    if isinstance(pipe.scheduler, SCMScheduler):
        return part_of_noise(pipe.scheduler.timesteps[step]).expand(1)
    return pipe.scheduler.sigmas[step].expand(1)


def test_the_norm_of_the_vocabulary_ignores_spare_rows(own_pipe: Any) -> None:
    """Rows beyond the tokenizer, however long, do not count; those of words do."""
    for encoder in family_of(own_pipe).encoders:
        count = len(getattr(own_pipe, encoder.tokenizer))
        weight = table(own_pipe, encoder)
        weight[count:] = 1e6
        expected = np.linalg.norm(weight[:count].numpy().astype(np.float64), axis=1)
        found = norms.summary(tables(own_pipe, [encoder])[encoder.key])
        assert found.mean == pytest.approx(expected[expected > 0].mean(), rel=1e-6)
        assert found.spare == len(weight) - count


@pytest.mark.parametrize("name", ["sana", "lumina2"])
def test_gemma_scales_a_placed_row_as_its_own(name: str) -> None:
    """Gemma 2 multiplies rows by the root of the width inside its embedding module, ours too."""
    pipe = shared(name, None)
    (encoder,) = family_of(pipe).encoders
    (word,) = words(pipe, "<dog>")
    rows = word.rows[encoder.key]
    with place(pipe, [encoder], [word]):
        ids = torch.tensor([[pipe.tokenizer.convert_tokens_to_ids("<dog>")]])
        embedded = pipe.text_encoder.get_input_embeddings()(ids)[0]
    assert torch.allclose(embedded, rows * rows.shape[1] ** 0.5, rtol=1e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(
    ("spread", "quantile"),
    [(uniform, lambda u: u), (logit_normal, lambda u: 1 / (1 + np.exp(-gaussian.ppf(u))))],
)
def test_levels_of_a_flow(shift: float, spread: Any, quantile: Any) -> None:
    """Odds of sigma are `shift` times those of the quantile; draws of 0 and 1 stay finite."""
    draws = np.linspace(0.01, 0.99, 50)
    odds = shift * quantile(draws) / (1 - quantile(draws))
    levels = Flow(shift, spread).levels(torch.tensor(draws))
    assert np.allclose(levels.numpy(), odds / (1 + odds), rtol=1e-9)
    assert Flow(shift, spread).levels(torch.tensor([0.0, 1.0])).tolist() == [0.0, 1.0]


def test_a_flow_is_a_straight_line() -> None:
    """Its target is the line's slope, whatever the level: the derivative of the noisy latents by sigma."""
    clean, noise = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    flow, level = Flow(1.0, uniform), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    slope = (flow.add_noise(clean, noise, level + 0.05) - flow.add_noise(clean, noise, level - 0.05)) / 0.1
    assert torch.allclose(slope, flow.target(clean, noise, level))


@pytest.mark.parametrize(
    ("index", "part"),
    [
        ({"_class_name": "FancyPipeline"}, "FancyPipeline"),
        (
            {"_class_name": "WanPipeline", "transformer_2": ["diffusers", "WanTransformer3DModel"]},
            "transformer_2",
        ),
        (
            {"_class_name": "WanPipeline", "transformer_2": [None, None], "expand_timesteps": True},
            "expand_timesteps",
        ),
    ],
)
def test_models_of_another_kind_are_refused(index: dict[str, Any], part: str) -> None:
    """A class no row names, and models whose noise levels mean something else, such as Wan 2.2."""
    with pytest.raises(ModelError, match=part):
        families.of_index(index, "some/model")


def test_wan_as_saved_today_is_not_refused() -> None:
    """Wan 2.1 names what it lacks with nulls and false."""
    index = {
        "_class_name": "WanPipeline",
        "transformer_2": [None, None],
        "boundary_ratio": None,
        "expand_timesteps": False,
    }
    assert families.of_index(index, "some/model").name == "wan"
