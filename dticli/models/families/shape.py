"""The interface of family files, and what they share: noise processes and prompt encoding.

The meaning of a noise level depends on the process: an integer timestep in diffusion; sigma in [0, 1] in a flow, with 0 for the
picture. Conversions for a denoiser (1000 sigma, 1 - sigma, packed latents, negative velocity) are in its family's file.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from dticli.errors import ModelError
from dticli.models.families import kl

Conditioning = dict[str, Any]

TIMESTEPS = 1000
"""Number of timesteps of flow denoisers that do not take sigma itself."""

FIXED = {"clean_caption": False, "num_frames": 1}
"""For every pipeline with these parameters: caption cleaning would remove `<dog>` as an HTML tag; a picture is one frame."""


@dataclass(frozen=True)
class Frame:
    """Position of a crop: sizes (height, width) in pixels; `crop` is the (top, left) corner after resizing."""

    original: tuple[int, int]
    crop: tuple[int, int]
    target: tuple[int, int]


class Process(Protocol):
    """A noise process: how noise is added, and what the denoiser predicts."""

    def levels(self, uniform: Tensor) -> Tensor:
        """Noise levels, (batch,), for uniform draws in [0, 1)."""
        ...

    def add_noise(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """Latents at that level, same shape as `latents`."""
        ...

    def target(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """What a perfect denoiser returns, same shape as `latents`."""
        ...


PREDICTIONS = ("epsilon", "v_prediction", "sample")
"""Prediction types of diffusion denoisers, as schedulers name them."""


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler follows a flow."""
    return (
        type(scheduler).__name__.startswith("FlowMatch")
        or bool(scheduler.config.get("use_flow_sigmas"))
        or scheduler.config.get("prediction_type") in ("flow_prediction", "trigflow")
    )


def require_flow(scheduler: Any) -> None:
    """Raise ModelError unless a scheduler follows a flow."""
    if not is_flow(scheduler):
        raise _untrainable(scheduler, "a flow")


def _untrainable(scheduler: Any, expected: str) -> ModelError:
    prediction = scheduler.config.get("prediction_type", "not named")
    return ModelError(
        f"the model's scheduler is {type(scheduler).__name__} (prediction: {prediction}): expected {expected}; "
        "dti cannot train this model, choose another --model"
    )


@dataclass(frozen=True)
class Diffusion:
    """Variance-preserving diffusion over discrete timesteps, with epsilon, v or sample prediction."""

    scheduler: DDPMScheduler

    @classmethod
    def of(cls, scheduler: Any) -> "Diffusion":
        """The training process of the model that a scheduler belongs to.

        Raises:
            ModelError: the scheduler has other noise or another prediction type, such as EDM.
        """
        # Without the note on which values are defaults, in whose place would come those of the other class.
        config = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
        signal = getattr(scheduler, "alphas_cumprod", None)
        known = not is_flow(scheduler) and config.get("prediction_type", PREDICTIONS[0]) in PREDICTIONS
        made = DDPMScheduler.from_config(config) if known and signal is not None else None
        if made is None or not torch.allclose(
            made.alphas_cumprod.double(), torch.as_tensor(signal).double(), atol=1e-5
        ):
            expected = f"diffusion with the betas of DDPMScheduler, predicting {', '.join(PREDICTIONS)}"
            raise _untrainable(scheduler, expected)
        return cls(made)

    def levels(self, uniform: Tensor) -> Tensor:
        return (uniform * self.scheduler.config.num_train_timesteps).long()

    def add_noise(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        return self.scheduler.add_noise(latents, noise, level)

    def target(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        match self.scheduler.config.prediction_type:
            case "epsilon":
                return noise
            case "v_prediction":
                return self.scheduler.get_velocity(latents, noise, level)
            case _:  # sample
                return latents


def uniform(draws: Tensor) -> Tensor:
    """Uniformly distributed sigmas."""
    return draws


def logit_normal(draws: Tensor) -> Tensor:
    """Logit-normal sigmas, most of them near the middle.

    Source: Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", 2024, section 3.1.
    """
    return torch.special.ndtri(draws).sigmoid()


@dataclass(frozen=True)
class Flow:
    """Rectified flow: x = (1 - sigma) x0 + sigma n, and the denoiser predicts the velocity n - x0.

    Attributes:
        shift: k in sigma = k u / (1 + (k - 1) u), which shifts levels towards noise; 1 for no shift.
        spread: maps uniform draws to u.

    Source: Esser et al. 2024, sections 3.1 and 5.3.2.
    """

    shift: float
    spread: Callable[[Tensor], Tensor]

    def levels(self, uniform: Tensor) -> Tensor:
        u = self.spread(uniform)
        return self.shift * u / (1 + (self.shift - 1) * u)

    def add_noise(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        sigma = level.to(latents).view(-1, *(1,) * (latents.ndim - 1))
        return (1 - sigma) * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        return noise - latents


def rectified_flow(scheduler: Any) -> Process:
    """The noise levels of SD3 for 1024 px; those of other families are unpublished or depend on the size, and not measured here.

    They are not read from the scheduler, which has the sampler's own levels, or loses its shift on conversion.
    """
    require_flow(scheduler)
    return Flow(shift=3.0, spread=logit_normal)


def even_flow(scheduler: Any) -> Process:
    """Uniform and unshifted, as the paper's SANA results and its reference's Wan were trained."""
    require_flow(scheduler)
    return Flow(shift=1.0, spread=uniform)


def diffusion(scheduler: Any) -> Process:
    """The diffusion process of a scheduler."""
    return Diffusion.of(scheduler)


def denoiser(pipe: Any) -> torch.nn.Module:
    """The U-Net or the transformer."""
    return getattr(pipe, "unet", None) or pipe.transformer


def height_width(frame: Frame) -> dict[str, Any]:
    """Call options of families that only take the size."""
    height, width = frame.target
    return {"height": height, "width": width}


def size_and_crop(frame: Frame) -> dict[str, Any]:
    """Call options of families that are conditioned on the position of the crop."""
    return height_width(frame) | {
        "original_size": frame.original,
        "crops_coords_top_left": frame.crop,
        "target_size": frame.target,
    }


def no_architecture(pipe: Any) -> str | None:
    """For families without a ModelSpec architecture name."""
    return None


def call_defaults(pipe: Any) -> dict[str, Any]:
    """Default arguments of `pipe(...)`, overridden by `FIXED`; for a pipeline or a pipeline class."""
    kind = pipe if isinstance(pipe, type) else type(pipe)
    parameters = inspect.signature(kind.__call__).parameters
    theirs = {name: each.default for name, each in parameters.items() if each.default is not each.empty}
    return theirs | {name: value for name, value in FIXED.items() if name in theirs}


def encode_prompt(pipe: Any, prompts: Sequence[str], **options: Any) -> Any:
    """Call `pipe.encode_prompt` as `pipe(...)` does, with the defaults of `__call__`, which differ from its own.

    The prompts are copied, because some pipelines write their chat template into the given list.
    """
    ours = inspect.signature(pipe.encode_prompt).parameters
    defaults = {name: value for name, value in call_defaults(pipe).items() if name in ours}
    fixed = {"device": pipe_device(pipe), "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    fixed = {name: value for name, value in fixed.items() if name in ours}
    return pipe.encode_prompt(**(defaults | fixed | options | {"prompt": list(prompts)}))


def guidance(pipe: Any, level: Tensor) -> Tensor | None:
    """The default guidance input of a guidance-distilled transformer, (batch,); None for other transformers."""
    if not pipe.transformer.config.guidance_embeds:
        return None
    return torch.full_like(level, call_defaults(pipe)["guidance_scale"], dtype=torch.float32)


def pipe_device(pipe: Any) -> torch.device:
    """The device on which the first text encoder computes; the autoencoder, or an offloaded encoder, may be on another one."""
    hook = getattr(pipe.text_encoder, "_hf_hook", None)
    return torch.device(hook.execution_device) if hook else next(pipe.text_encoder.parameters()).device


@dataclass(frozen=True)
class FamilyCode:
    """The functions of a family; the defaults are those that most families share.

    Attributes:
        encode: pipeline, prompts and as many frames to what `predict` conditions on, through the pipeline's own
            `encode_prompt`, with gradients.
        predict: pipeline, noisy latents, level (batch,) and conditioning to the denoiser's prediction, shaped like the
            latents, to compare with `Process.target`.
        process: the noise process of a model that samples with that scheduler of diffusers'; raises ModelError where it is
            another than the family is trained with.
        posterior: pipeline and pixels (batch, 3, height, width) in [-1, 1] to mean and std of the autoencoder's output.
        to_latents: pipeline and the autoencoder's output to what the denoiser works on: scaled and shifted.
        denoiser: the network `predict` runs.
        architecture: the model's `modelspec.architecture`, or None where no program has a name for it.
        call_options: keywords that make `pipe(...)` draw a picture framed like that.
    """

    encode: Callable[[Any, Sequence[str], Sequence[Frame]], Conditioning]
    predict: Callable[[Any, Tensor, Tensor, Conditioning], Tensor]
    process: Callable[[Any], Process]
    posterior: Callable[[Any, Tensor], tuple[Tensor, Tensor]] = kl.posterior
    to_latents: Callable[[Any, Tensor], Tensor] = kl.to_latents
    denoiser: Callable[[Any], torch.nn.Module] = denoiser
    architecture: Callable[[Any], str | None] = no_architecture
    call_options: Callable[[Frame], dict[str, Any]] = height_width
