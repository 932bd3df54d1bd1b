"""Policies whose network is a causal language model of transformers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from genrl_autoregressive.policy import AutoregressivePolicy
from genrl_core import GenRLError, PolicyConfig, Prompt, Reading, RecipeError, Tensors
from genrl_models import forward_arguments

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel


class TransformersPolicy(AutoregressivePolicy):
    """``logits`` for any model that transformers loads as a causal language model.

    Prompt and completion share the network's vocabulary; a completion is made of its first V ids.
    Positions are given explicitly, as the number of real tokens before each, so that padding on the
    left changes nothing even where positions are learned. A subclass gives ``encode`` and
    ``decode``.

    Attributes:
        missing: those of the V ids that are no token: their logits are ``-inf``.

    Raises:
        RecipeError: the network takes no cache, or reads a batch token by token otherwise than one
            row at once, as models with another memory than keys and values do.
    """

    missing: tuple[int, ...] = ()

    def __init__(
        self, config: PolicyConfig, network: nn.Module, num_symbols: int,
        end_tokens: tuple[int, ...] = (), num_tokens: int | None = None,
    ):  # fmt: skip
        super().__init__(config, network, num_symbols, end_tokens, num_tokens)
        self.max_positions, self._beyond = _positions(getattr(network, "config", None))
        self.lora_targets = linear_modules(network)
        self._names = _names(network)
        self._refuse_what_reads_otherwise()
        if self.predicts_value:
            add_value_head(network)

    def reading(self, prompts: Sequence[Prompt]) -> Sequence[Reading]:
        """The tokens of what ``encode`` gives, against the network's positions.

        A condition may hold ``negative_mask`` beside ``prompt_mask``.
        """
        if self.max_positions is None or self.max_positions < 1:
            return ()
        cond = self.encode(prompts)
        found = [Reading(cond["prompt_mask"].sum(1).tolist(), self.max_positions, cut=False)]
        if "negative_mask" in cond:
            lengths = cond["negative_mask"].sum(1).tolist()
            found.append(Reading(lengths, self.max_positions, cut=False, part="negative"))
        return found

    def logits(
        self, prompt: Tensor | None, tokens: Tensor, mask: Tensor, cond: Tensors,  # noqa: ARG002
        past: Any = None, *, cache: bool = False,
    ) -> tuple[Tensor, Any]:  # fmt: skip
        """See ``AutoregressivePolicy.logits``; the past is the model's own key-value cache.

        Raises:
            GenRLError: prompt and completion are longer than the network has positions.
        """
        logits, _, past = self._read(prompt, tokens, mask, past, cache)
        return logits, past

    def logits_and_values(
        self, prompt: Tensor | None, tokens: Tensor, mask: Tensor, cond: Tensors,  # noqa: ARG002
        past: Any = None, *, cache: bool = False,
    ) -> tuple[Tensor, Tensor, Any]:  # fmt: skip
        logits, found, past = self._read(prompt, tokens, mask, past, cache)
        values: Tensor = found.value[:, -logits.shape[1] :]
        return logits, _precise(values), past

    def _read(
        self, prompt: Tensor | None, tokens: Tensor, mask: Tensor, past: Any, cache: bool
    ) -> tuple[Tensor, Any, Any]:
        """The logits, all that the network returned, and the past."""
        if self.max_positions is not None and mask.shape[1] > self.max_positions:
            raise GenRLError(
                f"{mask.shape[1]} tokens of prompt and completion are more than the "
                f"{self.max_positions} positions of the network{self._beyond}: lower "
                "sampler.max_new_tokens or shorten the prompts"
            )
        ids = tokens if prompt is None else torch.cat([prompt, tokens], 1)
        keep = tokens.shape[1] + (prompt is not None)
        given: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": mask.long(),
            "position_ids": (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :],
            "cache": past,
            "use_cache": cache,
            "logits_to_keep": keep,
        }
        found = self.network(**{own: given[name] for name, own in self._names.items()})
        logits = _precise(found.logits[:, -keep:, : self.num_symbols])
        if self.missing:
            missing = torch.tensor(self.missing, device=logits.device)
            logits = logits.index_fill(-1, missing, -torch.inf)
        return logits, found, found[self._names["cache"]] if cache else None

    def _refuse_what_reads_otherwise(self) -> None:
        """Compare the calls of rollout and update with a plain one of each row alone.

        A forward that takes a cache, a mask or positions need not use them; its numbers tell. What
        keeps something else than a cache of one object fails here and not in the first rollout.
        """
        kind, was = type(self.network).__name__, self.network.training
        self.network.train(mode=False)
        try:
            gaps = self._gaps()
        except Exception as error:  # each architecture has its own
            first = f"{type(error).__name__}: {error}".splitlines()[0]
            raise RecipeError(
                f"policy.weights: {kind} cannot be read token by token, as drawing from it does: a "
                f"call with a cache ends in {first}. Choose a model that keeps keys and values"
            ) from error
        finally:
            self.network.train(mode=was)
        half = next(self.network.parameters()).dtype.itemsize < 4
        for what, gap in gaps.items():
            if not gap <= (2e-2 if half else 1e-3):  # rounding alone gives 1e-6 in float32
                raise RecipeError(
                    f"policy.weights: {kind} reads {what}: its logits are wrong by {gap:.2g} of "
                    "their size, and so would be every density. Choose another model; if this one "
                    "is known to work here, install the version of transformers that GenRL was "
                    "tested with (constraints.txt)"
                )

    @torch.no_grad()
    def _gaps(self) -> dict[str, float]:
        """How far two rows of five and three tokens are read wrongly, in units of the logits."""
        embedding: Any = self.network.get_input_embeddings()  # type: ignore[operator]
        width = min(5, self.max_positions or 5)
        ids = (7 * torch.arange(2 * width, device=embedding.weight.device) + 1).view(2, width)
        ids, mask = ids % len(embedding.weight), torch.ones_like(ids, dtype=torch.bool)
        mask[1, : width - 3] = False
        alone = torch.cat([
            self.network(input_ids=row[kept].unsqueeze(0)).logits[:, -2:, : self.num_symbols]
            for row, kept in zip(ids, mask, strict=True)
        ])  # fmt: skip
        prompt, token = ids[:, :-1], ids[:, -1:]
        batch, _, _ = self._read(prompt, token, mask, None, cache=False)
        first, _, past = self._read(prompt, token[:, :0], mask[:, :-1], None, cache=True)
        then, _, _ = self._read(None, token, mask, past, cache=True)
        size = alone.abs().max().clamp(min=torch.finfo(alone.dtype).tiny)
        return {
            what: float((found - alone).abs().max() / size)
            for what, found in {
                "a padded batch otherwise than each of its rows alone": batch,
                "a token otherwise behind the cache that it is handed": torch.cat([first, then], 1),
            }.items()
        }


def _names(network: nn.Module) -> dict[str, str]:
    """How the network's forward calls what it is handed."""
    try:
        return forward_arguments(
            network.forward, needed=("input_ids", "cache"),
            # Positions may follow from the mask, and use_cache stands in the config too.
            optional=("attention_mask", "position_ids", "use_cache", "logits_to_keep"),
        )  # fmt: skip
    except GenRLError as error:
        raise RecipeError(f"policy.weights: {error}") from error


def _positions(settings: Any) -> tuple[int | None, str]:
    """How many tokens a row may have, and why no more where the model itself would take more.

    Some rotary embeddings choose their frequencies by the longest row of a call; up to the original
    length they are those of every row.
    """
    limit, beyond = getattr(settings, "max_position_embeddings", None), ""
    limit = None if limit is None or limit < 1 else int(limit)  # XLNet says -1
    ropes = getattr(settings, "rope_parameters", None) or {}
    for rope in (ropes, *ropes.values()):  # one, or one per kind of layer
        kind = rope.get("rope_type") if isinstance(rope, dict) else None
        original = rope.get("original_max_position_embeddings") if kind else None
        if kind in ("longrope", "dynamic") and original and (limit is None or original < limit):
            limit = int(original)
            beyond = f", beyond which its {kind} rotary embeddings follow the longest row of a call"
    return limit, beyond


def _precise(found: Tensor) -> Tensor:
    return found if found.dtype == torch.float64 else found.float()


def add_value_head(network: nn.Module) -> None:
    """Give a causal language model of transformers a linear value of its last hidden states.

    Its class becomes a subclass whose ``forward`` adds ``value`` ``[R, S]`` to what it returns: the
    head runs inside the network's forward, and no parameter changes its name. It starts at 0.
    """
    kind: Any = type(network)
    settings: Any = network.config
    weight = next(network.parameters())
    with torch.random.fork_rng(devices=[]):  # its constructor draws
        head = nn.Linear(settings.hidden_size, 1, device=weight.device, dtype=weight.dtype)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    network.value_head = head

    def forward(self: Any, *args: Any, **fields: Any) -> Any:
        found = kind.forward(self, *args, output_hidden_states=True, **fields)
        found["value"] = self.value_head(found.hidden_states[-1]).squeeze(-1)
        return found

    network.__class__ = type(f"{kind.__name__}WithValue", (kind,), {"forward": forward})


def linear_modules(network: nn.Module) -> tuple[str, ...]:
    """The names of all linear modules but the output head, each once: what LoRA adapts."""
    head = getattr(network, "get_output_embeddings", lambda: None)()
    kinds = ("Linear", "Conv1D")  # GPT-2's linear layers are called the latter
    found = {
        name.rsplit(".", 1)[-1]
        for name, module in network.named_modules()
        if type(module).__name__ in kinds and module is not head
    }
    return tuple(sorted(found))


def tiny_gpt2(
    vocabulary: int, positions: int, *, width: int, layers: int, heads: int, seed: int
) -> "GPT2LMHeadModel":
    """A GPT-2 from scratch for small experiments: exact GELU, no dropout, its own generator.

    The same arguments give the same weights, and no global random number is drawn. The initial
    weights are those of GPT-2 scaled to the width: normal with deviation ``width ** -0.5`` inside
    the blocks and 0.1 for embeddings; what writes to the residual is smaller by ``sqrt(2 layers)``.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    settings = GPT2Config(
        vocab_size=vocabulary, n_positions=positions, n_embd=width, n_layer=layers, n_head=heads,
        activation_function="gelu", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):  # its constructor draws; what follows overwrites that
        network = GPT2LMHeadModel(settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(1.0 if ".ln_" in name and name.endswith("weight") else 0.0)
                continue
            std = 0.1 if name.endswith(("wte.weight", "wpe.weight")) else width**-0.5
            if name.endswith("c_proj.weight"):
                std = parameter.shape[0] ** -0.5 / (2 * layers) ** 0.5
            parameter.normal_(0.0, std, generator=generator)
    network.train(mode=False)
    return network
