"""Small configurations of transformers' architectures, for benchmarks/zoo.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["CONFIGURATIONS", "SKIPPED", "build_transformer"]

_TEXT: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32, "head_dim": 8,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_MAMBA = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "expand": 2}
_IMAGE = {"image_size": 32, "num_channels": 3}

# Model type, head, and settings.
_LLAMAS = [
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "phi3",
    "gemma",
    "gemma2",
    "olmo2",
    "granite",
    "smollm3",
]
_BERT = {k: v for k, v in _TEXT.items() if k not in ("head_dim", "num_key_value_heads")}
_VIT = {k: _TEXT[k] for k in ("hidden_size", "num_hidden_layers", "intermediate_size")}
_VIT["num_attention_heads"] = 4
_CAUSAL, _IMAGES = "AutoModelForCausalLM", "AutoModelForImageClassification"

# Model type, head, and settings.
CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    **dict.fromkeys(_LLAMAS, (_CAUSAL, _TEXT)),
    "mixtral": (_CAUSAL, {**_TEXT, "num_local_experts": 2, "num_experts_per_tok": 1}),
    "mamba": (_CAUSAL, _MAMBA),
    "mamba2": (
        _CAUSAL,
        {**_MAMBA, "head_dim": 8, "num_heads": 8, "n_groups": 2, "chunk_size": 8},
    ),
    "t5": (
        "AutoModelForSeq2SeqLM",
        {
            "vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
            "decoder_start_token_id": 0,
        },
    ),
    "gpt2": (
        _CAUSAL,
        {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32},
    ),
    "gpt2, to Group(4)": (
        _CAUSAL,
        {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32},
    ),
    "bert": ("AutoModelForMaskedLM", _BERT),
    "convnext": (
        _IMAGES,
        {"num_channels": 3, "hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1]},
    ),
    "vit": (_IMAGES, {**_IMAGE, **_VIT, "patch_size": 8}),
    "swin": (
        _IMAGES,
        {
            **_IMAGE,
            "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4,
        },
    ),
    "mobilenet_v2": (_IMAGES, {**_IMAGE, "depth_multiplier": 0.35}),
    "wav2vec2": (
        "AutoModelForAudioClassification",
        {
            **_VIT,
            "conv_dim": [16, 16], "conv_stride": [4, 4], "conv_kernel": [8, 8],
            "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4, "mask_time_prob": 0.0,
        },
    ),
}  # fmt: skip

# Layers to leave as they are: a fused kernel reads their weights, and never calls them.
SKIPPED: dict[str, tuple[str, ...]] = {"mamba2": ("*.mixer.norm",)}


class Logits(nn.Module):
    """A network of transformers as a function from a tensor to logits of the last position."""

    def __init__(self, network: nn.Module, seq2seq: bool = False) -> None:
        super().__init__()
        self.network, self.seq2seq = network, seq2seq

    def forward(self, x: Tensor) -> Tensor:
        """The logits, shape (batch, class)."""
        y = self.network(x, decoder_input_ids=x) if self.seq2seq else self.network(x)
        logits: Tensor = y.logits
        return logits[:, -1] if logits.ndim == 3 else logits


def build_transformer(name: str, classes: int) -> tuple[nn.Module, Tensor]:
    """A network from a small configuration with random weights, and a batch for it.

    Args:
        name: the model type.
        classes: how many classes heads of classifiers have.
    """
    import transformers
    from transformers import AutoConfig

    head, settings = CONFIGURATIONS[name]
    config = AutoConfig.for_model(name.partition(",")[0], **settings)
    if "Classification" in head:
        config.num_labels = classes
    config.use_cache = False
    network = getattr(transformers, head).from_config(config)
    if head == _IMAGES:
        x = torch.randn(4, 3, 32, 32)
    elif "Audio" in head:
        x = torch.randn(4, 400)
    else:
        x = torch.randint(3, 64, (4, 8))
    return Logits(network, "Seq2Seq" in head), x
