"""Help for plugins of models: files, weights, attention, the forward's arguments.

It registers nothing. ``ModelFiles`` finds a model in the hub or in a folder, ``read_tensors`` and
``fit_tensors`` read weights without pickle and put them into a network, ``attend`` and
``attention_backend`` take an ``AttentionChoice`` for the kernel of attention, ``forward_arguments``
says what a forward takes, and ``TransformerBlock`` is a layer for small models of one's own.
"""

from typing import TYPE_CHECKING

from genrl_core import lazy_names

if TYPE_CHECKING:
    from genrl_models.attention import AttentionChoice as AttentionChoice
    from genrl_models.attention import attend as attend
    from genrl_models.attention import attention_backend as attention_backend
    from genrl_models.attention import transformers_attention as transformers_attention
    from genrl_models.block import TransformerBlock as TransformerBlock
    from genrl_models.forwards import forward_arguments as forward_arguments
    from genrl_models.hub import ModelFiles as ModelFiles
    from genrl_models.tensor_files import WEIGHT_FILES as WEIGHT_FILES
    from genrl_models.tensor_files import fit_tensors as fit_tensors
    from genrl_models.tensor_files import read_tensors as read_tensors

__getattr__ = lazy_names(__name__, {
    "AttentionChoice": "attention", "attend": "attention", "attention_backend": "attention",
    "transformers_attention": "attention",
    "TransformerBlock": "block", "forward_arguments": "forwards", "ModelFiles": "hub",
    "WEIGHT_FILES": "tensor_files", "fit_tensors": "tensor_files", "read_tensors": "tensor_files",
})  # fmt: skip
