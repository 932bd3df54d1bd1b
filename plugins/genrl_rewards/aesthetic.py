"""LAION's aesthetic predictor: linear layers on CLIP's embedding of the image."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from genrl_core import Tensors
from genrl_models import WEIGHT_FILES, ModelFiles
from genrl_rewards.base import NetworkReward
from genrl_rewards.clip import image_embedding, load_clip
from genrl_rewards.loading import linear_chain

if TYPE_CHECKING:
    from genrl_rewards import AestheticConfig

FILES = (*WEIGHT_FILES, "sac+logos+ava1-l14-linearMSE.pth", "aesthetic-model.pth")
"""What the linear layers' file may be called."""


class AestheticNetwork(nn.Module):
    """``[b]`` scores from the unit embeddings of images."""

    def __init__(self, clip: nn.Module, head: nn.Module):
        super().__init__()
        self.clip, self.head = clip, head

    def forward(self, pixels: Tensor) -> Tensor:
        scores: Tensor = self.head(image_embedding(self.clip, pixels)).squeeze(-1)
        return scores


class Aesthetic(NetworkReward):
    """``w . I + b``, of CLIP's unit embedding I; about 1 to 10. It does not read the prompt.

    The published network has five linear layers with nothing between them, so it is one; they are
    kept apart here and the sum comes out the same.
    """

    def encode(self, texts: Sequence[str]) -> Tensors:  # noqa: ARG002  # the image alone
        return {}

    def score(self, pixels: Tensor, encoded: Tensors) -> Tensor:  # noqa: ARG002
        found: Tensor = self.network(pixels)
        return found


def aesthetic(config: "AestheticConfig") -> Aesthetic:
    """The reward, its network on the CPU.

    Raises:
        RecipeError: files are missing, or the layers do not fit the CLIP.
    """
    from transformers import CLIPVisionModelWithProjection

    clip = load_clip(
        CLIPVisionModelWithProjection, ModelFiles(config.clip, f"{config.called}.clip")
    )
    files = ModelFiles(config.weights, f"{config.called}.weights", config.revision)
    path, state = files.tensors(FILES)
    head = linear_chain(
        state, clip.config.projection_dim, f"{files.field}: the aesthetic layers of {path}"
    )
    return Aesthetic(
        AestheticNetwork(clip, head), None, batch_size=config.batch_size,
        side=clip.config.image_size,
    )  # fmt: skip
