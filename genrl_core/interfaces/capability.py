"""The closed set of things that a policy or a sampler can give and an objective can need."""

from enum import Enum


class Capability(Enum):
    """One capability; its value is the word that recipes, tables and messages use.

    The set is closed on purpose: a plugin declares which of these its configuration gives, and
    ``genrl check`` compares the two sides before any weight is loaded.
    """

    STEP_LOGP = "step_logp"
    STEP_KL = "step_kl"
    ENTROPY = "entropy"
    VALUE = "value"
    ELBO = "elbo"
    DENOISING = "denoising"
    CLEAN_SAMPLE = "clean_sample"
    DIFFERENTIABLE = "differentiable"
    PREVIEW = "preview"
    IMAGE = "image"
    TEXT = "text"
    VIDEO = "video"

    @property
    def sentence(self) -> str:
        """What having this capability means, as the end of a sentence."""
        return _SENTENCES[self]


_SENTENCES = {
    Capability.STEP_LOGP: "the log-density of every sampled step can be evaluated",
    Capability.STEP_KL: "the KL divergence of a step between two weight sets has a closed form",
    Capability.ENTROPY: "the entropy of a step depends on the weights and can be evaluated",
    Capability.VALUE: "the network predicts the expected reward of a state",
    Capability.ELBO: "a bound on the log-likelihood of a finished sample can be evaluated",
    Capability.DENOISING: "the prediction on a corrupted sample and its error are given",
    Capability.CLEAN_SAMPLE: "the prediction on a corrupted sample implies a clean sample",
    Capability.DIFFERENTIABLE: "the reward can be differentiated through the sampler",
    Capability.PREVIEW: "the finished sample can be predicted while a step is taken",
    Capability.IMAGE: "the finished samples are images",
    Capability.TEXT: "the finished samples are texts",
    Capability.VIDEO: "the finished samples are videos",
}

MEDIA = frozenset({Capability.IMAGE, Capability.TEXT, Capability.VIDEO})

VIEW_CAPABILITIES = {
    "steps": Capability.STEP_LOGP, "elbo": Capability.ELBO, "denoising": Capability.DENOISING,
    "reward": Capability.DIFFERENTIABLE,
}  # fmt: skip
"""View -> what policy and sampler must give for it."""
