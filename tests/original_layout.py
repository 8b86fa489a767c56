"""Pipelines as one file in the layout their authors published them in: LDM's for Stable Diffusion, SAI's for 3, BFL's for FLUX.1.

The way back from diffusers' names, written from the names in the authors' own model code; the loader under test is not asked.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

Tensors = dict[str, Tensor]
Names = Iterable[tuple[str, str]]


def write(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    """Write a checkpoint."""
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    return path


def tensors(pipe: Any) -> Tensors:
    """All weights of a pipeline under their original names."""
    return LAYOUTS[type(pipe).__name__](pipe)


def _renamed(tensors: Mapping[str, Tensor], names: Names) -> Tensors:
    """Every name after all substitutions in turn."""
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _fused(tensors: Mapping[str, Tensor], parts: tuple[str, ...], whole: str) -> Tensors:
    """Layers that are one in the original, such as queries, keys and values, are joined under the name `whole`."""
    joined: Tensors = {}
    for name, tensor in tensors.items():
        first = re.fullmatch(rf"(.*\b){re.escape(parts[0])}\.(weight|bias)", name)
        if first:
            joined[f"{first[1]}{whole}.{first[2]}"] = torch.cat(
                [tensors[f"{first[1]}{part}.{first[2]}"] for part in parts]
            )
        elif not any(re.fullmatch(rf".*\b{re.escape(part)}\.(weight|bias)", name) for part in parts[1:]):
            joined[name] = tensor
    return joined


def _swapped(tensors: Mapping[str, Tensor], *layers: str) -> Tensors:
    """Scale and shift change places: the originals shift first."""
    return {
        name: torch.cat(tensor.chunk(2)[::-1]) if name.rpartition(".")[0] in layers else tensor
        for name, tensor in tensors.items()
    }


# ----------------------------------------------------------------------------- Stable Diffusion 1, 2 and XL

RESNET = (
    (r"\bnorm1\b", "in_layers.0"),
    (r"\bconv1\b", "in_layers.2"),
    (r"\btime_emb_proj\b", "emb_layers.1"),
    (r"\bnorm2\b", "out_layers.0"),
    (r"\bconv2\b", "out_layers.3"),
    (r"\bconv_shortcut\b", "skip_connection"),
)
UNET = (
    (r"^time_embedding\.linear_1", "time_embed.0"),
    (r"^time_embedding\.linear_2", "time_embed.2"),
    (r"^add_embedding\.linear_1", "label_emb.0.0"),
    (r"^add_embedding\.linear_2", "label_emb.0.2"),
    (r"^conv_in", "input_blocks.0.0"),
    (r"^conv_norm_out", "out.0"),
    (r"^conv_out", "out.2"),
    (r"^mid_block\.attentions\.0", "middle_block.1"),
    (r"^mid_block\.resnets\.0", "middle_block.0"),
    (r"^mid_block\.resnets\.1", "middle_block.2"),
)
VAE = (
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"attn_1\.group_norm", "attn_1.norm"),
    (r"attn_1\.to_([qkv])", r"attn_1.\1"),
    (r"attn_1\.to_out\.0", "attn_1.proj_out"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"down_blocks\.(\d+)\.resnets", r"down.\1.block"),
    (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.(\d+)\.resnets", r"up.\1.block"),
    (r"up_blocks\.(\d+)\.upsamplers\.0", r"up.\1.upsample"),
    ("conv_norm_out", "norm_out"),
    ("conv_shortcut", "nin_shortcut"),
)
OPEN_CLIP = (
    (r"^text_model\.", ""),
    (r"^embeddings\.token_embedding", "token_embedding"),
    (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^final_layer_norm", "ln_final"),
    (r"^encoder\.layers", "transformer.resblocks"),
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    (r"mlp\.fc1", "mlp.c_fc"),
    (r"mlp\.fc2", "mlp.c_proj"),
    ("self_attn", "attn"),
    (r"in_proj\.(weight|bias)", r"in_proj_\1"),
)


def unet(module: Any) -> Tensors:
    """A U-Net whose blocks are counted through, as LDM does."""
    step = module.config.layers_per_block + 1

    def counted(name: str) -> str:
        match = re.match(
            r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.", name
        )
        if not match:
            return name
        side, block, kind, layer = match[1], int(match[2]), match[3], int(match[4])
        rest = name[match.end() :]
        match kind:
            case "downsamplers":
                return f"input_blocks.{(block + 1) * step}.0.op.{rest.removeprefix('conv.')}"
            case "upsamplers":
                # After the resnet, and the attention if there is one.
                place = 2 if hasattr(module.up_blocks[block], "attentions") else 1
                return f"output_blocks.{(block + 1) * step - 1}.{place}.{rest}"
        number = block * step + layer + (side == "down")
        return f"{'input' if side == 'down' else 'output'}_blocks.{number}.{int(kind == 'attentions')}.{rest}"

    stored = {}
    for name, tensor in module.state_dict().items():
        names = RESNET if ".resnets." in name else ()
        ((ours, _),) = _renamed({counted(name): tensor}, (*UNET, *names)).items()
        stored[ours] = tensor
    return _prefixed("model.diffusion_model.", stored)


def autoencoder(module: Any, prefix: str = "first_stage_model.") -> Tensors:
    """An autoencoder: levels counted from the finest one, attention by convolutions."""
    last = len(module.config.up_block_types) - 1
    stored = {
        re.sub(r"(?<=decoder\.up_blocks\.)\d+", lambda level: str(last - int(level[0])), name): tensor
        for name, tensor in module.state_dict().items()
    }
    stored = {
        name: tensor[:, :, None, None] if "attn_1" in name and tensor.ndim == 2 else tensor
        for name, tensor in _renamed(stored, VAE).items()
    }
    return _prefixed(prefix, stored)


def clip(module: Any, prefix: str) -> Tensors:
    """A CLIP encoder in transformers' names of before version 5.6."""
    return {
        prefix + (name if re.match(r"text_(model|projection)\.", name) else f"text_model.{name}"): tensor
        for name, tensor in module.state_dict().items()
    }


def open_clip(module: Any, prefix: str) -> Tensors:
    """A CLIP encoder in OpenCLIP's names: one matrix for queries, keys and values, the projection transposed."""
    stored = _fused(module.state_dict(), ("q_proj", "k_proj", "v_proj"), "in_proj")
    stored = _renamed(stored, OPEN_CLIP)
    if "text_projection.weight" in stored:
        stored["text_projection"] = stored.pop("text_projection.weight").T
    return _prefixed(prefix, stored)


def t5(module: Any, prefix: str) -> Tensors:
    """A T5 encoder, whose table is stored once."""
    stored = {
        name: each for name, each in module.state_dict().items() if name != "encoder.embed_tokens.weight"
    }
    return _prefixed(prefix, stored)


def sd(pipe: Any) -> Tensors:
    """Stable Diffusion 1, or with OpenCLIP's encoder 2."""
    encoder = (
        open_clip(pipe.text_encoder, "cond_stage_model.model.")
        if pipe.text_encoder.config.hidden_act == "gelu"
        else clip(pipe.text_encoder, "cond_stage_model.transformer.")
    )
    return unet(pipe.unet) | autoencoder(pipe.vae) | encoder


def sdxl(pipe: Any) -> Tensors:
    return (
        unet(pipe.unet)
        | autoencoder(pipe.vae)
        | clip(pipe.text_encoder, "conditioner.embedders.0.transformer.")
        | open_clip(pipe.text_encoder_2, "conditioner.embedders.1.model.")
    )


# ----------------------------------------------------------------------------- Stable Diffusion 3

QKV = ("to_q", "to_k", "to_v")
ADDED_QKV = ("add_q_proj", "add_k_proj", "add_v_proj")
MMDIT = (
    (r"^pos_embed\.pos_embed", "pos_embed"),
    (r"^pos_embed\.proj", "x_embedder.proj"),
    (r"^time_text_embed\.timestep_embedder\.linear_1", "t_embedder.mlp.0"),
    (r"^time_text_embed\.timestep_embedder\.linear_2", "t_embedder.mlp.2"),
    (r"^time_text_embed\.text_embedder\.linear_1", "y_embedder.mlp.0"),
    (r"^time_text_embed\.text_embedder\.linear_2", "y_embedder.mlp.2"),
    (r"^proj_out", "final_layer.linear"),
    (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
    (
        r"^transformer_blocks\.(\d+)\.(.*context|attn\.to_add_out|attn\.context)",
        r"joint_blocks.\1.context_block.\2",
    ),
    (r"^transformer_blocks\.(\d+)\.", r"joint_blocks.\1.x_block."),
    (r"norm1(_context)?\.linear", "adaLN_modulation.1"),
    (r"ff(_context)?\.net\.0\.proj", "mlp.fc1"),
    (r"ff(_context)?\.net\.2", "mlp.fc2"),
    (r"attn\.(to_out\.0|to_add_out)", "attn.proj"),
    (r"attn\.context_qkv", "attn.qkv"),
)


def mmdit(module: Any) -> Tensors:
    """A joint transformer of Stable Diffusion 3."""
    last = f"transformer_blocks.{module.config.num_layers - 1}.norm1_context.linear"
    stored = _swapped(module.state_dict(), "norm_out.linear", last)
    stored = _fused(_fused(stored, QKV, "qkv"), ADDED_QKV, "context_qkv")
    return _prefixed("model.diffusion_model.", _renamed(stored, MMDIT))


def sd3(pipe: Any) -> Tensors:
    stored = (
        mmdit(pipe.transformer)
        | autoencoder(pipe.vae)
        | clip(pipe.text_encoder, "text_encoders.clip_l.transformer.")
        | clip(pipe.text_encoder_2, "text_encoders.clip_g.transformer.")
    )
    if pipe.text_encoder_3:
        stored |= t5(pipe.text_encoder_3, "text_encoders.t5xxl.transformer.")
    return stored


# ----------------------------------------------------------------------------- FLUX.1

FLUX = (
    (r"^time_text_embed\.timestep_embedder\.linear_1", "time_in.in_layer"),
    (r"^time_text_embed\.timestep_embedder\.linear_2", "time_in.out_layer"),
    (r"^time_text_embed\.text_embedder\.linear_1", "vector_in.in_layer"),
    (r"^time_text_embed\.text_embedder\.linear_2", "vector_in.out_layer"),
    (r"^time_text_embed\.guidance_embedder\.linear_1", "guidance_in.in_layer"),
    (r"^time_text_embed\.guidance_embedder\.linear_2", "guidance_in.out_layer"),
    (r"^context_embedder", "txt_in"),
    (r"^x_embedder", "img_in"),
    (r"^proj_out", "final_layer.linear"),
    (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
    (r"^transformer_blocks", "double_blocks"),
    (r"norm1\.linear", "img_mod.lin"),
    (r"norm1_context\.linear", "txt_mod.lin"),
    (r"(?<=double_blocks\.\d\.)attn\.qkv", "img_attn.qkv"),
    (r"(?<=double_blocks\.\d\.)attn\.context_qkv", "txt_attn.qkv"),
    (r"(?<=double_blocks\.\d\.)attn\.norm_q\.weight", "img_attn.norm.query_norm.scale"),
    (r"(?<=double_blocks\.\d\.)attn\.norm_k\.weight", "img_attn.norm.key_norm.scale"),
    (r"attn\.norm_added_q\.weight", "txt_attn.norm.query_norm.scale"),
    (r"attn\.norm_added_k\.weight", "txt_attn.norm.key_norm.scale"),
    (r"attn\.to_out\.0", "img_attn.proj"),
    (r"attn\.to_add_out", "txt_attn.proj"),
    (r"ff\.net\.0\.proj", "img_mlp.0"),
    (r"ff\.net\.2", "img_mlp.2"),
    (r"ff_context\.net\.0\.proj", "txt_mlp.0"),
    (r"ff_context\.net\.2", "txt_mlp.2"),
    (r"^single_transformer_blocks", "single_blocks"),
    (r"(?<=single_blocks\.\d\.)norm\.linear", "modulation.lin"),
    (r"(?<=single_blocks\.\d\.)attn\.norm_q\.weight", "norm.query_norm.scale"),
    (r"(?<=single_blocks\.\d\.)attn\.norm_k\.weight", "norm.key_norm.scale"),
    (r"(?<=single_blocks\.\d\.)proj_out", "linear2"),
)


def flux_transformer(module: Any) -> Tensors:
    """A transformer of FLUX.1, whose single blocks make queries, keys, values and the MLP's input in one layer."""
    stored = _swapped(module.state_dict(), "norm_out.linear")
    single = {name: each for name, each in stored.items() if name.startswith("single_")}
    double = {name: each for name, each in stored.items() if name not in single}
    for name in [name for name in single if ".attn.to_" in name]:
        single[name.replace(".attn.", ".")] = single.pop(name)
    single = _fused(single, (*QKV, "proj_mlp"), "linear1")
    double = _fused(_fused(double, QKV, "qkv"), ADDED_QKV, "context_qkv")
    return _renamed(single | double, FLUX)


def flux(pipe: Any) -> Tensors:
    """The transformer alone, under bare names, as FLUX.1 was published."""
    return flux_transformer(pipe.transformer)


LAYOUTS: Mapping[str, Callable[[Any], Tensors]] = {
    "StableDiffusionPipeline": sd,
    "StableDiffusionXLPipeline": sdxl,
    "StableDiffusion3Pipeline": sd3,
    "FluxPipeline": flux,
}
