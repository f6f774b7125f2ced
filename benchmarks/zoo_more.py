"""Networks of MONAI, segmentation-models-pytorch, diffusers and torch_geometric for zoo.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["DIFFUSERS", "GRAPHS", "MEDICAL", "SEGMENTATION_MODELS", "Selected"]

Built = tuple[nn.Module, Any]


class Selected(nn.Module):
    """A network whose output is what a function takes of another's, averaged over positions.

    Args:
        network: the other network.
        select: from what it returns to one tensor.
        options: arguments by name that it is always called with; tensors among them are taken for the
            first examples, as many as there are.
    """

    def __init__(
        self,
        network: nn.Module,
        select: Callable[[Any], Tensor],
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.select = network, select
        self.options = options or {}

    def forward(self, *x: Tensor) -> Tensor:
        """The output as (batch, class)."""
        given = {
            key: value[: len(x[0])] if isinstance(value, Tensor) else value
            for key, value in self.options.items()
        }
        y = self.select(self.network(*x, **given))
        return y.flatten(2).mean(2) if y.ndim > 2 else y


def _words(text: str) -> list[str]:
    return text.split()


def _first(y: Any) -> Tensor:
    if isinstance(y, Tensor):
        return y
    if isinstance(y, dict):
        return _first(next(iter(y.values())))
    return _first(y[0])


def _image(name: str, dims: int, size: int, **settings: Any) -> Callable[[], Built]:
    def build() -> Built:
        from monai.networks import nets

        network = getattr(nets, name)(**settings)
        return Selected(network, _first), torch.randn(4, 1, *(size,) * dims)

    return build


_UNET: dict[str, Any] = {
    "spatial_dims": 2, "in_channels": 1, "out_channels": 3, "channels": (4, 8, 16), "strides": (2, 2),
}  # fmt: skip
_DYN: dict[str, Any] = {
    "in_channels": 1, "out_channels": 3, "kernel_size": [3, 3, 3], "strides": [1, 2, 2],
    "upsample_kernel_size": [2, 2], "filters": [4, 8, 16],
}  # fmt: skip
_FLAT: dict[str, Any] = {"spatial_dims": 2, "in_channels": 1, "out_channels": 3}
_CLASSES: dict[str, Any] = {"spatial_dims": 2, "n_input_channels": 1, "num_classes": 3}

MEDICAL: dict[str, Callable[[], Built]] = {
    "UNet, instance": _image("UNet", 2, 32, **_UNET, num_res_units=2),
    "UNet, batch": _image("UNet", 2, 32, **_UNET, num_res_units=2, norm="batch"),
    "UNet, group": _image("UNet", 2, 32, **_UNET, norm=("group", {"num_groups": 2}), act="relu"),
    "UNet 3d": _image("UNet", 3, 16, **{**_UNET, "spatial_dims": 3}),
    "AttentionUnet": _image("AttentionUnet", 2, 32, **_UNET),
    "BasicUNet": _image("BasicUNet", 2, 32, **_FLAT, features=(4, 4, 8, 8, 8, 4)),
    "BasicUNetPlusPlus": _image("BasicUNetPlusPlus", 2, 32, **_FLAT, features=(4, 4, 8, 8, 8, 4)),
    "DynUNet (nnU-Net)": _image("DynUNet", 2, 32, spatial_dims=2, **_DYN),
    "DynUNet, residual, 3d": _image("DynUNet", 3, 16, spatial_dims=3, **_DYN, res_block=True),
    "SegResNet": _image("SegResNet", 2, 32, **_FLAT, init_filters=8),
    "SegResNetDS": _image("SegResNetDS", 2, 32, **_FLAT, init_filters=8, blocks_down=(1, 1, 1)),
    "VNet": _image("VNet", 2, 32, **_FLAT, dropout_dim=2),
    "HighResNet": _image("HighResNet", 2, 16, **_FLAT),
    "AHNet": _image("AHNet", 2, 128, spatial_dims=2, in_channels=1, out_channels=3),
    "UNETR": _image(
        "UNETR", 2, 32, **_FLAT, img_size=32, feature_size=4, hidden_size=24, mlp_dim=32, num_heads=2
    ),
    "SwinUNETR": _image("SwinUNETR", 2, 64, **_FLAT, feature_size=12),
    "ViT": _image(
        "ViT", 2, 32, spatial_dims=2, in_channels=1, img_size=32, patch_size=8, hidden_size=24,
        mlp_dim=32, num_heads=2, num_layers=2, classification=True, num_classes=3,
    ),
    "FlexibleUNet": _image(
        "FlexibleUNet", 2, 64, spatial_dims=2, in_channels=1, out_channels=3,
        backbone="efficientnet-b0",
    ),
    "DenseNet121": _image("DenseNet121", 2, 64, **_FLAT),
    "SEResNet50": _image("SEResNet50", 2, 64, spatial_dims=2, in_channels=1, num_classes=3),
    "EfficientNetBN": _image(
        "EfficientNetBN", 2, 64, model_name="efficientnet-b0", spatial_dims=2, in_channels=1,
        num_classes=3, pretrained=False,
    ),
    "ResNet": _image("resnet18", 2, 64, **_CLASSES),
    "AutoEncoder": _image("AutoEncoder", 2, 32, **{**_UNET, "strides": (2, 2, 1)}),
    "MedNeXt": _image("MedNeXt", 2, 32, **_FLAT, init_filters=8),
    "DAF3D": _image("DAF3D", 3, 32, in_channels=1, out_channels=3),
}  # fmt: skip


def _segmentation(name: str, encoder: str, size: int = 64, **options: Any) -> Callable[[], Built]:
    def build() -> Built:
        import segmentation_models_pytorch as smp

        network = getattr(smp, name)(encoder, encoder_weights=None, classes=3, **options)
        return Selected(network, _first), torch.randn(4, 3, size, size)

    return build


SEGMENTATION_MODELS: dict[str, Callable[[], Built]] = {
    **{
        f"{name}, resnet18": _segmentation(name, "resnet18", 128 if name == "PAN" else 64)
        for name in _words(
            "Unet UnetPlusPlus FPN PSPNet DeepLabV3 DeepLabV3Plus Linknet MAnet PAN UPerNet Segformer"
        )
    },
    **{
        f"Unet, {encoder}": _segmentation("Unet", encoder)
        for encoder in _words(
            "efficientnet-b0 mobilenet_v2 densenet121 vgg11_bn se_resnet50 dpn68 "
            "timm-efficientnet-b0 timm-mobilenetv3_small_100 timm-regnetx_002 mit_b0 mobileone_s0 "
            "tu-convnext_atto xception"
        )
    },
    "PSPNet, efficientnet-b0": _segmentation("PSPNet", "efficientnet-b0"),
    "FPN, mit_b0": _segmentation("FPN", "mit_b0"),
    "Unet, with a head for classes": _segmentation("Unet", "resnet18", aux_params={"classes": 2}),
    "Unet, decoder with instance normalization": _segmentation(
        "Unet", "resnet18", decoder_use_norm={"type": "instancenorm", "affine": True}
    ),
    "DPT, tu-vit_tiny_patch16_224.augreg_in21k": _segmentation(
        "DPT", "tu-vit_tiny_patch16_224.augreg_in21k", 224
    ),
}


def _diffusion(
    name: str,
    settings: dict[str, Any],
    shapes: dict[str, Any],
    select: Callable[[Any], Tensor] = _first,
) -> Callable[[], Built]:
    """Shapes are of the first input, ``x``, and of all others; integers stand for time steps."""

    def build() -> Built:
        import diffusers

        network = getattr(diffusers, name)(**settings)
        for parameter in network.parameters():  # many are made to start at 0
            if float(parameter.detach().abs().max()) == 0:
                nn.init.normal_(parameter, std=0.02)
        options = {k: torch.randn(4, *s) if isinstance(s, tuple) else s for k, s in shapes.items()}
        options = {
            k: torch.full((4,), v) if isinstance(v, int) and not isinstance(v, bool) else v
            for k, v in options.items()
        }
        x = options.pop("x")
        return Selected(network, select, options), x

    return build


_BLOCKS: dict[str, Any] = {
    "block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1,
}  # fmt: skip
_VAE: dict[str, Any] = {
    **_BLOCKS, "in_channels": 3, "out_channels": 3, "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
}  # fmt: skip
_DIT: dict[str, Any] = {
    "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "in_channels": 4,
    "sample_size": 8, "patch_size": 2,
}  # fmt: skip

DIFFUSERS: dict[str, Callable[[], Built]] = {
    "UNet2DModel": _diffusion(
        "UNet2DModel",
        {**_BLOCKS, "sample_size": 16, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
         "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 4},
        {"x": (3, 16, 16), "timestep": 7},
    ),
    "UNet2DConditionModel": _diffusion(
        "UNet2DConditionModel",
        {**_BLOCKS, "sample_size": 8, "cross_attention_dim": 12, "attention_head_dim": 4,
         "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
         "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")},
        {"x": (4, 8, 8), "timestep": 7, "encoder_hidden_states": (5, 12)},
    ),
    "AutoencoderKL": _diffusion("AutoencoderKL", _VAE, {"x": (3, 16, 16)}),
    "VQModel": _diffusion(
        "VQModel", {**_VAE, "num_vq_embeddings": 16, "vq_embed_dim": 4}, {"x": (3, 16, 16)}
    ),
    "AutoencoderTiny": _diffusion("AutoencoderTiny", {}, {"x": (3, 32, 32)}),
    "DiTTransformer2DModel": _diffusion(
        "DiTTransformer2DModel",
        {**_DIT, "norm_type": "ada_norm_zero", "num_embeds_ada_norm": 10},
        {"x": (4, 8, 8), "timestep": 7, "class_labels": 3},
    ),
    "PixArtTransformer2DModel": _diffusion(
        "PixArtTransformer2DModel",
        {**_DIT, "out_channels": 8, "cross_attention_dim": 16, "caption_channels": 12,
         "num_embeds_ada_norm": 10, "use_additional_conditions": False},
        {"x": (4, 8, 8), "encoder_hidden_states": (5, 12), "timestep": 7},
    ),
    "SD3Transformer2DModel": _diffusion(
        "SD3Transformer2DModel",
        {**_DIT, "joint_attention_dim": 12, "caption_projection_dim": 16, "pooled_projection_dim": 6,
         "out_channels": 4, "pos_embed_max_size": 8, "qk_norm": "rms_norm"},
        {"x": (4, 8, 8), "encoder_hidden_states": (5, 12), "pooled_projections": (6,), "timestep": 7},
    ),
    "SanaTransformer2DModel": _diffusion(
        "SanaTransformer2DModel",
        {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8,
         "num_layers": 2, "num_cross_attention_heads": 2, "cross_attention_head_dim": 8,
         "cross_attention_dim": 16, "caption_channels": 12, "sample_size": 8, "patch_size": 1},
        {"x": (4, 8, 8), "encoder_hidden_states": (5, 12), "timestep": 7},
    ),
    "PriorTransformer": _diffusion(
        "PriorTransformer",
        {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 2, "embedding_dim": 8,
         "num_embeddings": 5, "additional_embeddings": 4},
        {"x": (8,), "timestep": 7, "proj_embedding": (8,), "encoder_hidden_states": (5, 8)},
    ),
    "ControlNetModel": _diffusion(
        "ControlNetModel",
        {**_BLOCKS, "cross_attention_dim": 12, "attention_head_dim": 4,
         "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
         "conditioning_embedding_out_channels": (8, 8)},
        {"x": (4, 8, 8), "timestep": 7, "encoder_hidden_states": (5, 12),
         "controlnet_cond": (3, 16, 16)},
        lambda y: y.mid_block_res_sample,
    ),
}  # fmt: skip


class Graphs(nn.Module):
    """A network of nodes as a function of graphs with the same edges, averaged over their nodes.

    Args:
        network: takes values and edges; if ``graphs``, also the graph that each node is of.
        edges: of one graph, shape (2, edge).
        graphs: whether the network takes that.
    """

    def __init__(self, network: nn.Module, edges: Tensor, graphs: bool) -> None:
        super().__init__()
        self.network, self.graphs = network, graphs
        self.register_buffer("edges", edges, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """From (graph, node, channel) to an output for each graph."""
        count, nodes, _ = x.shape
        graph = torch.arange(count)
        edges = (self.edges[:, None] + nodes * graph[:, None]).flatten(1)
        more = {"batch": graph.repeat_interleave(nodes)} if self.graphs else {}
        y: Tensor = self.network(x.flatten(0, 1), edges, **more)
        return y.unflatten(0, (count, nodes)).mean(1)


def _graph(build_network: Callable[[Any], nn.Module], graphs: bool = True) -> Callable[[], Built]:
    def build() -> Built:
        import torch_geometric.nn as gnn

        edges = torch.randint(0, 10, (2, 40))
        return Graphs(build_network(gnn), edges, graphs), torch.randn(4, 10, 6)

    return build


def _basic(name: str, norm: Any, **options: Any) -> Callable[[], Built]:
    return _graph(lambda g: getattr(g, name)(6, 8, 3, out_channels=4, norm=norm, **options))


class _Convolutions(nn.Module):
    """Two convolutions with a normalization between them, called with the graph of each node."""

    def __init__(self, g: Any, norm: Callable[[Any], nn.Module]) -> None:
        super().__init__()
        self.first, self.last = g.GCNConv(6, 8), g.GCNConv(8, 4)
        self.norm = norm(g)

    def forward(self, x: Tensor, edges: Tensor, batch: Tensor) -> Tensor:
        y: Tensor = self.last(self.norm(self.first(x, edges), batch).relu(), edges)
        return y


class _Deep(nn.Module):
    """As in deep graph networks: residual blocks around a normalization."""

    def __init__(self, g: Any) -> None:
        super().__init__()
        self.start, self.end = nn.Linear(6, 8), nn.Linear(8, 4)
        self.blocks = nn.ModuleList(
            g.DeepGCNLayer(g.GENConv(8, 8), g.LayerNorm(8), nn.ReLU(), block="res+")
            for _ in range(2)
        )

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        x = self.start(x)
        for block in self.blocks:
            x = block(x, edges)
        y: Tensor = self.end(x)
        return y


class _Gps(nn.Module):
    """Message passing and attention side by side, with three normalizations."""

    def __init__(self, g: Any, norm: str) -> None:
        super().__init__()
        self.start, self.end = nn.Linear(6, 8), nn.Linear(8, 4)
        self.block = g.GPSConv(8, g.GCNConv(8, 8), heads=2, norm=norm)

    def forward(self, x: Tensor, edges: Tensor, batch: Tensor) -> Tensor:
        y: Tensor = self.end(self.block(self.start(x), edges, batch))
        return y


GRAPHS: dict[str, Callable[[], Built]] = {
    "GCN, BatchNorm": _basic("GCN", "batch_norm"),
    "GCN, LayerNorm of graphs": _basic("GCN", "layer_norm"),
    "GCN, LayerNorm of nodes": _basic("GCN", "layer_norm", norm_kwargs={"mode": "node"}),
    "GCN, GraphNorm": _basic("GCN", "graph_norm"),
    "GCN, InstanceNorm": _basic("GCN", "instance_norm"),
    "GCN, PairNorm": _basic("GCN", "pair_norm"),
    "GraphSAGE, BatchNorm": _basic("GraphSAGE", "batch_norm"),
    "GIN, BatchNorm": _basic("GIN", "batch_norm"),
    "GAT, GraphNorm": _basic("GAT", "graph_norm"),
    "EdgeCNN, LayerNorm of graphs": _basic("EdgeCNN", "layer_norm"),
    "GCNConv, InstanceNorm with weights": _graph(
        lambda g: _Convolutions(g, lambda g: g.InstanceNorm(8, affine=True))
    ),
    "GCNConv, LayerNorm of graphs without weights": _graph(
        lambda g: _Convolutions(g, lambda g: g.LayerNorm(8, affine=False))
    ),
    "GCNConv, HeteroLayerNorm": _graph(
        lambda g: _Convolutions(g, lambda g: g.HeteroLayerNorm(8, num_types=4))
    ),
    "GCNConv, HeteroBatchNorm": _graph(
        lambda g: _Convolutions(g, lambda g: g.HeteroBatchNorm(8, num_types=4))
    ),
    "DeepGCNLayer, LayerNorm of graphs": _graph(_Deep, graphs=False),
    "GPSConv, BatchNorm": _graph(lambda g: _Gps(g, "batch_norm")),
    "GPSConv, GraphNorm": _graph(lambda g: _Gps(g, "graph_norm")),
    "MLP, BatchNorm": _graph(lambda g: _Mlp(g), graphs=False),
}


class _Mlp(nn.Module):
    def __init__(self, g: Any) -> None:
        super().__init__()
        self.mlp = g.MLP([6, 8, 4])

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        y: Tensor = self.mlp(x)
        return y
