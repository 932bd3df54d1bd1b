"""The plugin's own tests."""

import torch
from genrl_stripes.objective import TruncatedConfig
from genrl_stripes.policy import StripesConfig
from genrl_stripes.reward import stripiness

from genrl_core import Media, Prompt
from genrl_core.testing import check_sampler, expected_update, toys
from genrl_masked import ConfidenceConfig
from genrl_objectives import ReinforceConfig

PROMPTS = [Prompt("v", "vertical stripes"), Prompt("h", "horizontal stripes")]


def test_policy_is_scored_as_it_was_drawn() -> None:
    check_sampler(StripesConfig().build(), ConfidenceConfig(num_inference_steps=4).build(), PROMPTS)


def test_reward_of_vertical_stripes() -> None:
    pixels = torch.tensor([0, 255], dtype=torch.uint8).repeat(2, 3, 4, 2)
    assert stripiness(Media("image", pixels), PROMPTS) == [1.0, -1.0]


def test_objective_is_reinforce_where_no_weight_is_cut_off() -> None:
    policy, sampler = toys()[0]
    ours, known = (
        expected_update(policy, sampler, {"it": (1.0, config.build())}, group_size=2)
        for config in (TruncatedConfig(ceiling=2.0), ReinforceConfig())
    )
    assert ours["table"].abs().max() > 0.01
    torch.testing.assert_close(ours, known)
