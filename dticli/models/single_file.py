"""Single-file checkpoints: a model's weights in one safetensors file, with the tensor names of its original code.

The kind of model is recognised from the header. diffusers converts the weights to its layout; configs, tokenizers and missing
components come from a *base*, a model of the same kind in diffusers layout.
"""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from dticli import files, mistaken
from dticli.errors import ModelError, boundary
from dticli.models import foreign

if TYPE_CHECKING:
    import torch

SUFFIX = ".safetensors"
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
DENOISER = "model.diffusion_model."
EXPECTED = "expected a whole SD1, SD2, SDXL, SD3 or FLUX.1 checkpoint in its original layout"

Shapes = dict[str, tuple[int, ...]]
"""Name to shape of tensors."""

_CLIP = "transformer.text_model.embeddings.token_embedding.weight"
_OPEN_CLIP = "model.token_embedding.weight"
_T5 = "transformer.shared.weight"
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction"}
"""Names of prediction types in ModelSpec's `prediction_type` and our settings, to those of schedulers."""
EDM = ("edm_vpred.sigma_max", "edm_mean")
"""Tensors that mark checkpoints with EDM noise, such as CosXL and Playground 2.5."""
ZERO_SNR = "rescale_betas_zero_snr"
"""Option of schedulers for zero terminal SNR: no signal at the last timestep."""
_SD2_BIAS = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
_UNSURE = "v1"
"""Kind that diffusers infers for SD1, and for anything it does not recognise."""


@dataclass(frozen=True)
class Part:
    """A component of the pipeline in the file.

    Attributes:
        prefix: start of the names of its tensors.
        tables: possible names of a text encoder's embedding table, after the prefix.
    """

    component: str
    prefix: str
    tables: tuple[str, ...] = ()


VAE = (Part("vae", "first_stage_model."), Part("vae", "vae."))
CLIP_L = Part("text_encoder", "text_encoders.clip_l.", (_CLIP,))


@dataclass(frozen=True)
class CheckpointLayout:
    """The tensor names of one family's checkpoints.

    Attributes:
        sign: a tensor that every denoiser of this family has, and none of the families below it in the table.
        kinds: diffusers' names of its kinds of checkpoints; the first is the default if diffusers cannot tell.
        denoiser: name of the denoiser's component.
        bare: whether a file may have a denoiser only, without a prefix.
    """

    family: str
    sign: str
    kinds: tuple[str, ...]
    denoiser: str
    parts: tuple[Part, ...]
    bare: bool = False


LAYOUTS = (
    CheckpointLayout(
        "sd3",
        "joint_blocks.0.context_block.adaLN_modulation.1.bias",
        ("sd3", "sd35_medium", "sd35_large"),
        "transformer",
        (
            CLIP_L,
            Part("text_encoder_2", "text_encoders.clip_g.", (_CLIP,)),
            Part("text_encoder_3", "text_encoders.t5xxl.", (_T5,)),
            *VAE,
        ),
        bare=True,
    ),
    CheckpointLayout(
        "flux",
        "double_blocks.0.img_attn.norm.key_norm.scale",
        ("flux-dev", "flux-schnell"),
        "transformer",
        (CLIP_L, Part("text_encoder_2", "text_encoders.t5xxl.", (_T5,)), *VAE),
        bare=True,
    ),
    CheckpointLayout(
        "sdxl",
        "label_emb.0.0.weight",
        ("xl_base",),
        "unet",
        (
            Part("text_encoder", "conditioner.embedders.0.", (_CLIP,)),
            Part("text_encoder_2", "conditioner.embedders.1.", (_OPEN_CLIP,)),
            *VAE,
        ),
    ),
    CheckpointLayout(
        "sd",
        "input_blocks.0.0.weight",
        ("v1", "v2"),
        "unet",
        (Part("text_encoder", "cond_stage_model.", (_CLIP, _OPEN_CLIP)), *VAE),
    ),
)

LOOKS: tuple[tuple[str, str, str], ...] = (
    (
        r"lora_|\.lora\.|hada_w|lokr_w",
        "a LoRA",
        "pass the model it was made for, or merge the two first",
    ),
    (r"^control_model\.|^controlnet_|^input_hint_block\.", "a ControlNet", "pass the model it was made for"),
    (
        r"^(down_blocks|up_blocks|transformer_blocks|text_model|encoder|decoder|embeddings|shared)\.",
        "a single component",
        "pass the folder with its model_index.json",
    ),
)
"""Files that are mistaken for checkpoints: pattern of a tensor's name, what the file is, and what to do."""


@dataclass(frozen=True, eq=False)
class SingleFile:
    """A checkpoint, described by its header.

    Attributes:
        shapes: name to shape of every tensor.
        prefix: start of the names of the denoiser's tensors.
        kind: diffusers' name of the kind of checkpoint.
    """

    path: Path
    layout: CheckpointLayout
    shapes: Shapes
    prefix: str
    kind: str

    @property
    def usual_base(self) -> str:
        """Hub id of the public model of its kind."""
        from diffusers.loaders import single_file_utils

        return single_file_utils.DIFFUSERS_DEFAULT_PIPELINE_PATHS[self.kind]["pretrained_model_name_or_path"]

    @cached_property
    def noise(self) -> dict[str, Any]:
        """Noise and prediction type that the file itself records, as entries of a scheduler's config; often empty.

        Source of the tensors' names and of trailing timesteps: ComfyUI's supported_models.py; Lin et al., "Common
        Diffusion Noise Schedules and Sample Steps are Flawed", 2024.
        """
        prediction = self._prediction() if self.layout.denoiser == "unet" else None
        if prediction is None:
            return {}
        zero = prediction == PREDICTIONS["v"] and "ztsnr" in self.shapes
        return {"prediction_type": prediction} | (
            {ZERO_SNR: True, "timestep_spacing": "trailing"} if zero else {}
        )

    def _prediction(self) -> str | None:
        """From a marker tensor, else the metadata, else a weight that differs between the two kinds of SD 2."""
        if "v_pred" in self.shapes:
            return PREDICTIONS["v"]
        with safe_open(self.path, framework="pt") as file:
            said = (file.metadata() or {}).get("modelspec.prediction_type")
            name = self.prefix + _SD2_BIAS
            if said in PREDICTIONS or self.kind != "v2" or name not in self.shapes:
                return PREDICTIONS.get(str(said))
            # The same criterion and threshold as in ComfyUI.
            spread = file.get_tensor(name).float().std(correction=0).item()
        return PREDICTIONS["v" if spread > 0.09 else "epsilon"]

    @cached_property
    def components(self) -> dict[str, Shapes]:
        """Component to name to shape of its tensors, for each component in the file."""
        components: dict[str, Shapes] = {}
        for name, shape in sorted(self.shapes.items()):
            component = self._component(name)
            if component:
                components.setdefault(component, {})[name] = shape
        return dict(sorted(components.items()))

    @property
    def lacking(self) -> tuple[str, ...]:
        """Components of its family that are not in the file."""
        every = dict.fromkeys([self.layout.denoiser, *(part.component for part in self.layout.parts)])
        return tuple(component for component in every if component not in self.components)

    @cached_property
    def tables(self) -> dict[str, tuple[Path, str]]:
        """Text encoder to file and tensor name of its embedding table, for each one in the file."""
        names = {part.component: [part.prefix + each for each in part.tables] for part in self.layout.parts}
        return {
            component: (self.path, name)
            for component, candidates in names.items()
            for name in candidates
            if name in self.shapes
        }

    def _component(self, name: str) -> str | None:
        """The component of a tensor; None for others, such as averages from training."""
        for part in self.layout.parts:
            if name.startswith(part.prefix):
                return part.component
        return self.layout.denoiser if name.startswith(self.prefix) else None


def is_named(name: str) -> bool:
    """Whether a model's name is that of a file, by its suffix."""
    return Path(name).suffix.lower() in (SUFFIX, *PICKLES) and not os.path.isdir(os.path.expanduser(name))


def is_checkpoint(path: Path) -> bool:
    """Whether a file is a checkpoint, and not for example a token file."""
    try:
        return path.suffix.lower() == SUFFIX and _recognise(_shapes(path)) is not None
    except ModelError:
        return False


def read(path: Path) -> SingleFile:
    """Read a checkpoint's header and recognise it.

    Raises:
        ModelError: the file is missing, damaged, a pickle, not a checkpoint, or of an unsupported kind.
    """
    if path.suffix.lower() in PICKLES:
        raise ModelError(
            f"{path.name} is a pickle, which may run foreign code when it is loaded: expected safetensors; convert it"
        )
    shapes = _shapes(path)
    found = _recognise(shapes)
    if found is None:
        what, advice = _look(shapes)
        raise ModelError(f"{path.name} looks like {what}: {EXPECTED}; {advice}")
    marks = [name for name in EDM if name in shapes]
    if marks:
        raise ModelError(
            f"{path.name} is a checkpoint with EDM noise (it contains {marks[0]}), which dti does not support: expected one "
            f"with epsilon or v prediction; choose another --model"
        )
    layout, prefix = found
    file = SingleFile(path, layout, shapes, prefix, _kind(path, layout, shapes))
    encoders = {part.component for part in layout.parts if part.tables}
    strange = (encoders & file.components.keys()) - file.tables.keys()
    if strange:
        raise ModelError(
            f"{path.name} names the tensors of its {min(strange)} in an unknown way: {EXPECTED}; choose another --model"
        )
    return file


def header(path: Path) -> Shapes:
    """Name to shape of every tensor of a safetensors file; reads only the header.

    Raises:
        OSError, SafetensorError: the file is missing or damaged.
    """
    with safe_open(path, framework="np") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a mapping


def _shapes(path: Path) -> Shapes:
    files.require(path, ModelError, f"{EXPECTED}; check --model")

    def unreadable(reason: str) -> ModelError:
        what = mistaken.known_file(path)
        return ModelError(
            f"{path.name} {f'is {what}' if what else f'cannot be read ({reason}); download it again'}"
        )

    with boundary(unreadable):
        return header(path)


def _recognise(shapes: Shapes) -> tuple[CheckpointLayout, str] | None:
    """The layout, and the prefix of the denoiser's tensors; None for other files."""
    for layout in LAYOUTS:
        for prefix in (DENOISER, "") if layout.bare else (DENOISER,):
            if prefix + layout.sign in shapes:
                return layout, prefix
    return None


def _look(shapes: Shapes) -> tuple[str, str]:
    """What a file is instead of a checkpoint, and advice."""
    for pattern, what, advice in LOOKS:
        if any(re.search(pattern, name) for name in shapes):
            return what, advice
    if 0 < len(shapes) < 10 and all(len(shape) <= 2 for shape in shapes.values()):
        return "a token file", "pass it with --token to dti generate, and its model with --model"
    return (
        f"something else ({len(shapes)} tensors, such as {min(shapes, default='none')!a})",
        "choose another",
    )


def _kind(path: Path, layout: CheckpointLayout, shapes: Shapes) -> str:
    """diffusers' name of the kind of checkpoint.

    Raises:
        ModelError: the layout does not support the kind, such as a variant for inpainting.
    """
    import torch
    from diffusers.loaders import single_file_utils

    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    kind = single_file_utils.infer_diffusers_model_type(tensors)
    if kind == _UNSURE:
        kind = layout.kinds[0]
    if kind not in layout.kinds:
        raise ModelError(
            f"{path.name} is a checkpoint of the kind {kind!r}: {EXPECTED}; choose another --model"
        )
    return kind


# ----------------------------------------------------------------------------- with a base


@dataclass(frozen=True)
class Base:
    """A local model in diffusers layout.

    Attributes:
        folder: with its configs and tokenizers, and the weights that a single file lacks.
        index: its `model_index.json`.
    """

    name: str
    folder: Path
    index: Mapping[str, Any]

    def has(self, component: str) -> bool:
        """Whether it has a component; some models are saved without a large encoder."""
        match self.index.get(component):
            case [str(), *_]:
                return True
        return False


def require_family(file: SingleFile, family: str, base: str) -> None:
    """Raise ModelError unless a file and its base are of the same family."""
    if family != file.layout.family:
        raise ModelError(
            f"{file.path.name} is a checkpoint of the family {file.layout.family}, and {base} a model of {family}: "
            "expected a base of the same kind; choose another --base"
        )


def require_fit(file: SingleFile, base: Base) -> None:
    """Check a file against its base before any weight is read.

    Raises:
        ModelError: a component's weights are neither in the file nor in the base, or the size of the file's denoiser or
            autoencoder does not match the base's configs.
    """
    for component in filter(base.has, file.lacking):
        if not any(path.suffix in (SUFFIX, ".bin") for path in base.folder.glob(f"{component}/*")):
            raise ModelError(
                f"{file.path.name} holds no {component}, and neither does {base.name}: expected its weights in one of "
                "the two; choose a complete checkpoint, or a --base that has them"
            )
    for component in file.components.keys() & {file.layout.denoiser, "vae"}:
        stored = sum(math.prod(shape) for shape in file.components[component].values())
        spare = stored - _size(component, base)
        # Some files also have the discriminator of their autoencoder's training; a denoiser has no further weights.
        if spare < 0 or (spare and component == file.layout.denoiser):
            difference = f"{abs(spare)} numbers {'more' if spare > 0 else 'fewer'} than that base's"
            raise _misfit(file, base, f"its {component} has {difference}")


def _size(component: str, base: Base) -> int:
    """Number of elements of a component built from the base's config.

    Raises:
        ModelError: it cannot be built.
    """
    import diffusers
    import torch

    def broken(reason: str) -> ModelError:
        return ModelError(f"the {component} of {base.name} cannot be built ({reason}); choose another --base")

    with boundary(broken), torch.device("meta"):
        kind = getattr(diffusers, base.index[component][1])
        module = kind.from_config(kind.load_config(base.folder, subfolder=component, local_files_only=True))
    return sum(tensor.numel() for tensor in module.state_dict().values())


def fill(file: SingleFile, pipe: Any, base: Base, dtype: "torch.dtype") -> Any:
    """Add the file's weights to a base's pipeline.

    Args:
        pipe: the base's pipeline, without the components that the file has.

    Raises:
        ModelError: the weights do not fit the base's configs.
    """
    filled = [component for component in file.components if base.has(component)]
    rest = {name: part for name, part in pipe.components.items() if name not in filled}
    # Converters and loaders raise different classes if a tensor is missing or has another shape.
    with boundary(partial(_misfit, file, base)):
        pipe = foreign.load(
            type(pipe).from_single_file,
            str(file.path),
            config=str(base.folder),
            dtype=dtype,
            local_files_only=True,
            **rest,
        )
    for component in filled:
        module = getattr(pipe, component)
        if hasattr(module, "tie_weights"):
            # T5's table is stored once, but its encoder uses it under another name.
            module.tie_weights()
        missing = [name for name, tensor in module.state_dict().items() if tensor.is_meta]
        if missing:
            raise _misfit(file, base, f"its {component} lacks {missing[0]}")
    return pipe


def _misfit(file: SingleFile, base: Base, reason: str) -> ModelError:
    return ModelError(f"{file.path.name} does not fit its base {base.name}: {reason}; choose another --base")
