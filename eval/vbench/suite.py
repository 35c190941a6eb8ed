"""The 16 dimensions of VBench: how each counts, what it loads, and whether that is here."""

import difflib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from eval.vbench import environment

Root = Literal["vbench", "torch", "huggingface", "packages"]


def root_folder(root: Root) -> Path:
    """The folder that the package looks for a kind of file in, on this machine.

    $VBENCH_CACHE_DIR or ~/.cache/vbench, torch's hub folder ($TORCH_HOME), Hugging Face's cache ($HF_HUB_CACHE,
    $HF_HOME), or the packages of the environment.
    """
    if root == "vbench":
        return Path(os.environ.get("VBENCH_CACHE_DIR") or "~/.cache/vbench").expanduser()
    if root == "torch":
        return Path(torch.hub.get_dir())
    if root == "huggingface":
        home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
        return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
    return environment.site_packages()


@dataclass(frozen=True)
class Need:
    """A file or folder that a dimension loads, below its root, and where to get it."""

    root: Root
    name: str
    source: str

    @property
    def path(self) -> Path:
        return root_folder(self.root) / self.name

    def __str__(self) -> str:
        return f"{self.path} (from {self.source})"


CLIP = "https://openaipublic.azureedge.net/clip/models"
MODELS = "https://huggingface.co/OpenGVLab/VBench_Used_Models/resolve/main"
CLIP_B = Need(
    "vbench",
    "clip_model/ViT-B-32.pt",
    f"{CLIP}/40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
)
CLIP_L = Need(
    "vbench",
    "clip_model/ViT-L-14.pt",
    f"{CLIP}/b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
)
DINO = (
    Need("torch", "facebookresearch_dino_main", "a clone of https://github.com/facebookresearch/dino"),
    Need(
        "torch",
        "checkpoints/dino_vitbase16_pretrain.pth",
        "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth",
    ),
)
BERT = Need("huggingface", "models--bert-base-uncased", "`hf download bert-base-uncased`")
GRIT = (
    Need("packages", "detectron2", "https://github.com/facebookresearch/detectron2, built in this environment"),
    Need(
        "vbench",
        "grit_model/grit_b_densecap_objectdet.pth",
        "https://datarelease.blob.core.windows.net/grit/models/grit_b_densecap_objectdet.pth",
    ),
    BERT,
)
VICLIP = (
    Need("vbench", "ViCLIP/ViClip-InternVid-10M-FLT.pth", f"{MODELS}/ViClip-InternVid-10M-FLT.pth"),
    Need(
        "vbench",
        "ViCLIP/bpe_simple_vocab_16e6.txt.gz",
        "https://github.com/openai/CLIP/raw/main/clip/bpe_simple_vocab_16e6.txt.gz",
    ),
)


@dataclass(frozen=True)
class Dimension:
    """One dimension.

    Attributes:
        group: whether it counts for Quality or for Semantic.
        lowest, highest: raw scores that normalise to 0 and 1 (VBench:scripts/constant.py, as is `weight`).
        weight: in the mean of its group.
        takes_any_video: scored on any video, not only on those of the benchmark's own prompts.
    """

    name: str
    group: Literal["quality", "semantic"]
    needs: tuple[Need, ...]
    lowest: float = 0.0
    highest: float = 1.0
    weight: float = 1.0
    takes_any_video: bool = True

    def missing(self) -> list[Need]:
        """What it loads and is not here."""
        return [need for need in self.needs if not need.path.exists()]


SUITE: tuple[Dimension, ...] = (
    Dimension("subject_consistency", "quality", DINO, lowest=0.1462),
    Dimension("background_consistency", "quality", (CLIP_B,), lowest=0.2615),
    Dimension("temporal_flickering", "quality", (), lowest=0.6293),
    Dimension(
        "motion_smoothness",
        "quality",
        (Need("vbench", "amt_model/amt-s.pth", "https://huggingface.co/lalala125/AMT/resolve/main/amt-s.pth"),),
        lowest=0.706,
        highest=0.9975,
    ),
    Dimension(
        "dynamic_degree",
        "quality",
        (
            Need(
                "vbench",
                "raft_model/models/raft-things.pth",
                "https://dl.dropboxusercontent.com/s/4j4z58wuv8o0mfz/models.zip, unpacked",
            ),
        ),
        weight=0.5,
    ),
    Dimension(
        "aesthetic_quality",
        "quality",
        (
            CLIP_L,
            Need(
                "vbench",
                "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth",
                "https://github.com/LAION-AI/aesthetic-predictor/raw/main/sa_0_4_vit_l_14_linear.pth",
            ),
        ),
    ),
    Dimension(
        "imaging_quality",
        "quality",
        (
            Need(
                "vbench",
                "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",
                "https://github.com/chaofengc/IQA-PyTorch/releases/download/v0.1-weights/musiq_spaq_ckpt-358bb6af.pth",
            ),
        ),
    ),
    Dimension("object_class", "semantic", GRIT, takes_any_video=False),
    Dimension("multiple_objects", "semantic", GRIT, takes_any_video=False),
    Dimension(
        "human_action",
        "semantic",
        (
            Need(
                "vbench",
                "umt_model/l16_ptk710_ftk710_ftk400_f16_res224.pth",
                f"{MODELS}/l16_ptk710_ftk710_ftk400_f16_res224.pth",
            ),
        ),
    ),
    Dimension("color", "semantic", GRIT, takes_any_video=False),
    Dimension("spatial_relationship", "semantic", GRIT, takes_any_video=False),
    Dimension(
        "scene",
        "semantic",
        (
            Need(
                "vbench",
                "caption_model/tag2text_swin_14m.pth",
                "https://huggingface.co/spaces/xinyu1205/recognize-anything/resolve/main/tag2text_swin_14m.pth",
            ),
            BERT,
        ),
        highest=0.8222,
        takes_any_video=False,
    ),
    Dimension("appearance_style", "semantic", (CLIP_B,), lowest=0.0009, highest=0.2855, takes_any_video=False),
    Dimension("temporal_style", "semantic", VICLIP, highest=0.364),
    Dimension("overall_consistency", "semantic", VICLIP, highest=0.364),
)
NAMES = tuple(dimension.name for dimension in SUITE)


def dimensions(names: Iterable[str] = NAMES) -> list[Dimension]:
    """Dimensions by name, in the order of the suite; all 16 by default. Raises ValueError for an unknown one."""
    names = list(names)
    for name in names:
        if name not in NAMES:
            close = difflib.get_close_matches(name, NAMES, n=1)
            guess = f"did you mean {close[0]}? " if close else ""
            raise ValueError(f"unknown VBench dimension {name!r}; {guess}there are {', '.join(NAMES)}")
    return [dimension for dimension in SUITE if dimension.name in names]
