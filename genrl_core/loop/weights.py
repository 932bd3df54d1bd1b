"""Weight sets: the current weights and their companions, and the fixed set of what is trained.

Without LoRA a weight set is a module of its own, put in the place of ``policy.network`` while it is
active. With LoRA (peft) it is an adapter of the one network, and the reference is the network with
its adapters switched off. Parameters are never swapped inside a module, because autocast keeps
casts of them. What is trained, averaged or lagging is float32, see ``precision``.
"""

import copy
import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from genrl_core.errors import RecipeError
from genrl_core.interfaces.policy import Policy
from genrl_core.loop.precision import lower, precision_of, widen
from genrl_core.loop.settings import LoraConfig

CURRENT, REFERENCE, LAGGING = "current", "reference", "lagging"


class WeightSets:
    """The weights of one policy under several names.

    ``current`` is what is trained; ``reference`` are the weights before training; ``lagging``
    and ``ema`` follow the current weights. The set of trainable parameters is taken once, here:
    peft flips ``requires_grad`` whenever adapters are switched, so it is set again every time.

    Attributes:
        trainable: name -> parameter of the current weights.
    """

    def __init__(self, policy: Policy, lora: LoraConfig | None = None, seed: int = 0):
        self._policy = policy
        self._network = policy.network
        self._lora = lora
        self._seed = seed
        self._modules: dict[str, nn.Module] = {CURRENT: policy.network}
        self._adapters: list[str] = []
        if policy.precision is None:
            policy.precision = precision_of(policy.network)
            if policy.precision == torch.bfloat16:
                lower(policy.network, policy.precision)
        if lora is not None:
            policy.network.requires_grad_(False)
            self._add_adapter(CURRENT)
            for name, parameter in policy.network.named_parameters():
                if belongs_to(name, policy.new_modules):
                    parameter.requires_grad_(True)
        self.trainable: dict[str, nn.Parameter] = {
            name: p for name, p in policy.network.named_parameters() if p.requires_grad
        }
        if not self.trainable:
            raise RecipeError("nothing to train: every parameter of the network is frozen")
        widen(policy.network, self.trainable.values())

    def __contains__(self, name: str) -> bool:
        return name in self._modules or name in self._adapters

    def snapshot(self, name: str) -> None:
        """Make the weight set ``name`` hold the current weights as they are now.

        With LoRA the reference needs no copy: the adapters are off.
        """
        if self._lora is not None:
            if name == REFERENCE:
                self._modules[name] = self._network
                return
            self._add_adapter(name)
            widen(self._network, self._parameters(name).values())
            self._update_adapter(name, 0.0)
            self._switch(CURRENT)
            return
        frozen = copy.deepcopy(self._network)
        frozen.requires_grad_(False)
        frozen.eval()
        self._modules[name] = frozen

    @torch.no_grad()
    def ema_update(self, name: str, decay: float) -> None:
        """Let a weight set follow: ``decay`` of its own weights, the rest of the current ones."""
        if self._lora is not None:
            self._update_adapter(name, decay)
            return
        mine = dict(self._modules[name].named_parameters())
        for key, parameter in self.trainable.items():
            mine[key].lerp_(parameter, 1.0 - decay)
        for own, current in zip(
            self._modules[name].buffers(), self._network.buffers(), strict=True
        ):
            own.copy_(current)

    @contextmanager
    def using(self, name: str) -> Iterator[Policy]:
        """The policy under a weight set; the one before comes back at the end.

        Raises:
            KeyError: no such weight set (a fault of the caller, not of the user).
        """
        if self._lora is not None:
            if name not in self:
                raise KeyError(name)
            self._switch(name)
            try:
                yield self._policy
            finally:
                self._switch(CURRENT)
            return
        before = self._policy.network
        self._policy.network = self._modules[name]
        try:
            yield self._policy
        finally:
            self._policy.network = before

    def state_dict(self, name: str = CURRENT) -> dict[str, Tensor]:
        """The trained parameters of a weight set, and the buffers."""
        buffers = {f"buffer.{n}": b.detach() for n, b in self._network.named_buffers()}
        return {n: p.detach() for n, p in self._parameters(name).items()} | buffers

    def load_state_dict(self, tensors: dict[str, Tensor], name: str = CURRENT) -> None:
        """Continue from ``state_dict``; raises like ``check``."""
        self.check(tensors, name)
        with torch.no_grad():
            for key, tensor in self.state_dict(name).items():
                tensor.copy_(tensors[key])

    def check(self, tensors: dict[str, Tensor], name: str = CURRENT) -> None:
        """Whether ``load_state_dict`` would take these tensors.

        Raises:
            ValueError: names or shapes differ, with the differences.
        """
        own = self.state_dict(name)
        problems = [f"missing {key}" for key in own.keys() - tensors.keys()]
        problems += [f"unexpected {key}" for key in tensors.keys() - own.keys()]
        problems += [
            f"{key} is {tuple(tensors[key].shape)}, not {tuple(own[key].shape)}"
            for key in own.keys() & tensors.keys()
            if own[key].shape != tensors[key].shape
        ]
        if problems:
            raise ValueError("; ".join(sorted(problems)))

    @torch.no_grad()
    def merged(self, name: str = CURRENT) -> dict[str, Tensor]:
        """All weights of a set under the network's own names, adapters folded into their modules.

        A weight that has an adapter is float32, whatever the type of the base, so that the sum is
        not rounded.
        """
        from peft.tuners.tuners_utils import BaseTunerLayer

        with self.using(name) as policy:
            network = policy.network
            found: dict[str, Tensor] = dict(network.named_parameters())
            found |= {f"buffer.{key}": buffer for key, buffer in network.named_buffers()}
            own = {k.replace(".base_layer.", "."): t for k, t in found.items() if ".lora_" not in k}
            for key, module in network.named_modules():
                if isinstance(module, BaseTunerLayer):
                    layer: Any = module
                    base = layer.get_base_layer().weight.float()
                    own[f"{key}.weight"] = base + layer.get_delta_weight(name).float()
            return {key: tensor.detach().clone() for key, tensor in own.items()}

    def _parameters(self, name: str) -> dict[str, nn.Parameter]:
        """The parameters of a weight set under the names of the current ones."""
        if name == CURRENT:
            return self.trainable
        if self._lora is None:
            found = dict(self._modules[name].named_parameters())
            return {key: found[key] for key in self.trainable}
        found = dict(self._network.named_parameters())
        # The adapter's name stands inside a parameter's, or, on an embedding, at its end.
        own = {k: f"{k}.".replace(f".{CURRENT}.", f".{name}.")[:-1] for k in self.trainable}
        return {key: found[mine] for key, mine in own.items()}

    @torch.no_grad()
    def _update_adapter(self, name: str, decay: float) -> None:
        for key, mine in self._parameters(name).items():
            mine.lerp_(self.trainable[key], 1.0 - decay)

    def _add_adapter(self, name: str) -> None:
        import peft
        from transformers.pytorch_utils import Conv1D

        assert self._lora is not None
        targets = self._lora.target_modules or list(self._policy.lora_targets)
        if not targets:
            linear = {n.rsplit(".", 1)[-1] for n, m in self._network.named_modules()
                      if isinstance(m, nn.Linear | Conv1D)}  # fmt: skip
            raise RecipeError(
                f"weights.lora: {type(self._policy).__name__} names no modules for LoRA; set "
                f"weights.lora.target_modules, for example to {sorted(linear)}"
            )
        # peft draws initial weights from the global generator: from our seed, and put back after.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "Already found a `peft_config`"
            )  # weight sets are several
            transposed = _any_target(self._network, targets, Conv1D)  # weights [in, out]: GPT-2
            if transposed and _any_target(self._network, targets, nn.Linear):
                # One setting cannot fit both kinds: peft sets it right layer by layer, and says so.
                warnings.filterwarnings("ignore", "fan_in_fan_out is set to")
            torch.manual_seed(self._seed)
            config = peft.LoraConfig(
                r=self._lora.rank, lora_alpha=self._lora.alpha or self._lora.rank,
                lora_dropout=0.0, target_modules=targets,
                fan_in_fan_out=transposed,
            )  # fmt: skip
            try:
                peft.inject_adapter_in_model(config, self._network, adapter_name=name)
            except ValueError as error:
                raise RecipeError(f"weights.lora: {error}") from error
        self._adapters.append(name)

    def _switch(self, name: str) -> None:
        """Activate an adapter, or none for the reference; only the current one ever trains."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        for module in self._network.modules():
            if isinstance(module, BaseTunerLayer):
                layer: Any = module
                layer.enable_adapters(name != REFERENCE)
                if name != REFERENCE:
                    layer.set_adapter(name)
        trained = {id(p) for p in self.trainable.values()}
        for parameter in self._network.parameters():
            parameter.requires_grad_(id(parameter) in trained)


def belongs_to(name: str, modules: Sequence[str]) -> bool:
    """Whether a parameter or buffer belongs to one of the modules, all by their full names."""
    return name.startswith(tuple(f"{module}." for module in modules))


def _any_target(network: nn.Module, targets: Sequence[str], kind: type[nn.Module]) -> bool:
    """Whether one of the modules that get an adapter, or have one, is of this kind."""
    for name, module in network.named_modules():
        own = f".{name.removesuffix('.base_layer')}"
        if isinstance(module, kind) and own.endswith(tuple(f".{target}" for target in targets)):
            return True
    return False


def fingerprint(module: nn.Module) -> str:
    """A hash of all parameters and buffers: whether two modules hold the same weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
