"""Policies small enough to enumerate, and tiny published models that are saved on the spot."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genrl_autoregressive import (
    AutoregressivePolicy,
    AutoregressivePolicyConfig,
    CausalLmConfig,
    TokenConfig,
    TransformersPolicy,
)
from genrl_core import Media, Plan, Prompt, Tensors

NUM_PROMPTS = 3


class Table(nn.Module):
    """Free logits for every prompt and every history of up to T - 1 tokens: ``[P, H, V]``."""

    def __init__(self, num_tokens: int, num_symbols: int, scale: float, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        shape = (NUM_PROMPTS, (num_symbols + 1) ** (num_tokens - 1), num_symbols)
        noise = torch.randn(shape, dtype=torch.float64, generator=generator)
        self.logits = nn.Parameter(scale * noise)

    def forward(self, prompt: Tensor, history: Tensor) -> Tensor:
        """``[R]`` and ``[R, S]`` (histories as numbers) to ``[R, S, V]``."""
        return self.logits[prompt.unsqueeze(1), history]


class TablePolicy(AutoregressivePolicy):
    """The prompt is one token, its number; prompt 0 is the empty one. The past is what was read."""

    network: Table
    calls: int = 0

    def encode(self, prompts: Sequence[Prompt]) -> Tensors:
        ids = torch.tensor([[int(prompt.id)] for prompt in prompts])
        return {"prompt": ids, "prompt_mask": torch.ones_like(ids, dtype=torch.bool)}

    def decode(self, final: Tensors) -> Media:
        rows = zip(final["tokens"].tolist(), final["length"].tolist(), strict=True)
        return Media("text", texts=tuple(" ".join(map(str, row[:n])) for row, n in rows))

    def unconditional(self, cond: Tensors) -> Tensors:
        return {"prompt": torch.zeros_like(cond["prompt"]), "prompt_mask": cond["prompt_mask"]}

    def logits(
        self, prompt: Tensor | None, tokens: Tensor, mask: Tensor, cond: Tensors,
        past: Any = None, *, cache: bool = False,
    ) -> tuple[Tensor, Any]:  # fmt: skip
        self.calls += 1
        if prompt is not None:
            past = (prompt[:, -1], tokens[:, :0])
        first, before = past
        read = torch.cat([before, tokens], 1)
        codes = [torch.zeros_like(first)]
        for place in range(read.shape[1]):
            codes.append(codes[-1] * (self.num_symbols + 1) + read[:, place] + 1)
        new = torch.stack(codes, 1)[:, before.shape[1] + (prompt is None) :]
        return self.network(first, new), (first, read)


class TableConfig(AutoregressivePolicyConfig):
    num_tokens: int = 2
    num_symbols: int = 3
    scale: float = 1.0
    seed: int = 0
    end: int | None = None

    def build(self) -> TablePolicy:
        network = Table(self.num_tokens, self.num_symbols, self.scale, self.seed)
        ends = () if self.end is None else (self.end,)
        fixed = self.num_tokens if self.end is None else None
        return TablePolicy(self, network, self.num_symbols, ends, fixed)


class IdsPolicy(TransformersPolicy):
    """A network of transformers whose prompts are numbers, as ``3 1 4``."""

    def encode(self, prompts: Sequence[Prompt]) -> Tensors:
        rows = [[int(word) for word in prompt.text.split()] for prompt in prompts]
        width = max(map(len, rows))
        ids = [[0] * (width - len(row)) + row for row in rows]
        mask = [[False] * (width - len(row)) + [True] * len(row) for row in rows]
        return {"prompt": torch.tensor(ids), "prompt_mask": torch.tensor(mask)}

    def decode(self, final: Tensors) -> Media:
        return TablePolicy.decode(self, final)  # type: ignore[arg-type]

    def unconditional(self, cond: Tensors) -> Tensors:
        ids = torch.ones_like(cond["prompt"][:, :1])
        return {"prompt": ids, "prompt_mask": torch.ones_like(ids, dtype=torch.bool)}


PROMPTS = [Prompt("a", "3 1 4 1 5"), Prompt("b", "2"), Prompt("c", "7 1 8")]
SYMBOLS = 9


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(
        vocab_size=12, n_positions=24, n_embd=16, n_layer=2, n_head=2, initializer_range=0.4,
        bos_token_id=1, eos_token_id=0,
    ))  # fmt: skip


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(
        vocab_size=12, max_position_embeddings=24, hidden_size=16, intermediate_size=24,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.4,
        bos_token_id=1, eos_token_id=0,
    ))  # fmt: skip


NETWORKS = {"gpt2": gpt2, "llama": llama}


@pytest.fixture
def make_ids() -> Callable[..., IdsPolicy]:
    """``make_ids("gpt2", double=False, end=0)``: a random tiny network behind ``IdsPolicy``."""

    def make(kind: str, *, double: bool = False, end: int | None = 0) -> IdsPolicy:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            network = NETWORKS[kind]().eval()
        network = network.double() if double else network
        ends = () if end is None else (end,)
        return IdsPolicy(CausalLmConfig(), network, SYMBOLS, ends)

    return make


@pytest.fixture
def make_table() -> Callable[..., TablePolicy]:
    """``make_table(num_tokens=2, num_symbols=3, scale=1.0, seed=0, end=None)``."""
    return lambda **fields: TableConfig(**fields).build()


@pytest.fixture
def make_plan() -> Callable[..., Plan]:
    """``make_plan(samples, prompts=1, seed=0)``: prompt ids 1, 2; ``samples`` of each."""

    def make(samples: int, prompts: int = 1, seed: int = 0) -> Plan:
        chosen = tuple(Prompt(str(index + 1), "1") for index in range(prompts))
        group = torch.arange(prompts).repeat_interleave(samples)
        return Plan(seed, 0, 0, chosen, group, torch.arange(samples).repeat(prompts))

    return make


@pytest.fixture
def draw() -> Callable[..., Any]:
    """``draw(policy, plan, **sampler_fields)``: a rollout and its sampler."""

    def rollout(policy: AutoregressivePolicy, plan: Plan, **fields: Any) -> Any:
        sampler = TokenConfig(**fields).build()
        return sampler, sampler.rollout(policy, policy.encode(plan.sample_prompts()), plan)

    return rollout


def save_tokenizer(folder: Path, characters: str, frame: str = "$A", **fields: Any) -> None:
    """A character-level tokenizer in the published format: end is 0, beginning 1.

    ``frame`` is what it makes of a text with special tokens, such as ``<begin> $A <end>``. A space
    among the characters is an id that is no token.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<end>": 0, "<begin>": 1} | {
        character: index + 2 for index, character in enumerate(characters) if character != " "
    }
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    inner.decoder = decoders.Fuse()
    inner.post_processor = processors.TemplateProcessing(
        single=frame, special_tokens=[("<begin>", 1), ("<end>", 0)]
    )
    known = {
        "eos_token": "<end>", "bos_token": "<begin>",
        "chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}=",
    }  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **(known | fields))
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny random models in the published format: config, safetensors, tokenizer."""
    found = {}
    for kind, make in NETWORKS.items():
        found[kind] = tmp_path_factory.mktemp(kind)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(6)
            make().save_pretrained(found[kind])
        save_tokenizer(found[kind], "01234+=abc"[:10])
    return found
