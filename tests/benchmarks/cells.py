"""The rows of the table of objectives: what runs on the digits of each paradigm, and how."""

from dataclasses import dataclass

PARENTS = {
    "masked": "digits/masked",
    "diffusion": "digits/diffusion",
    "autoregressive": "digits/autoregressive",
    "masked, random release": "digits/random_release",
    "diffusion, DDPM": "digits/vp",
}
"""Which models there are, and the recipe whose base and evaluation their rows share."""


@dataclass(frozen=True)
class Cell:
    """A recipe, and overrides where it is the parent of its paradigm."""

    recipe: str
    overrides: tuple[str, ...] = ()


def _cell(paradigm: str, objective: str, *more: str) -> Cell:
    """The parent with its GRPO replaced by ``objective``, a label with its fields."""
    own = ("objective.grpo=null", f"objective.{objective}", "advantage=null")
    return Cell(PARENTS[paradigm], (*own, *more))


def _masked(objective: str, *more: str) -> Cell:
    return _cell("masked", objective, *more)


def _diffusion(objective: str, *more: str) -> Cell:
    return _cell("diffusion", objective, "train.iterations=90", *more)


def _autoregressive(objective: str, *more: str) -> Cell:
    return _cell("autoregressive", objective, *more)


TWO = "train.num_minibatches=2"
"""So that the second minibatch has a ratio to clip; the diffusion parent has it."""
LAGGING = "weights.lagging.decay=0.5"
DRAWS = "train.draws=4"
SIGMA = (
    "policy.elbo.weighting=sigma", "sampler.noise=0.0", "sampler.num_inference_steps=10",
)  # fmt: skip
"""For bounds on diffusion: samples of the deterministic sampler, errors weighted by the noise."""

CELLS: dict[str, dict[str, Cell]] = {
    "masked": {
        "grpo": Cell("digits/mask_grpo"),
        "reinforce": _masked("reinforce={}"),
        "dr_grpo": _masked("dr_grpo={epsilon: 0.1, epsilon_high: 0.2}", TWO),
        "dapo": _masked("dapo={epsilon: 0.1, epsilon_high: 0.2}", TWO, "filter=null"),
        "bnpo": _masked("bnpo={epsilon: 0.1, epsilon_high: 0.2}", TWO),
        "gspo": _masked("gspo={epsilon: 0.02}", TWO),
        "gmpo": _masked("gmpo={epsilon: 0.2}", TWO),
        "cispo": _masked("cispo={epsilon_high: 2}", TWO),
        "sapo": _masked("sapo={}", TWO),
        "rloo": _masked("rloo={epsilon: 0.1, epsilon_high: 0.2}", TWO),
        "reinforce_pp": _masked("reinforce_pp={epsilon: 0.1, epsilon_high: 0.2}", TWO),
        "grpo_guard": _masked(
            "grpo_guard={epsilon: 0.1, over: sum}",
            TWO,
            "sampler.transition=ar",
        ),
        "flow_dppo": _masked("flow_dppo={threshold: 1e-2}", TWO, "sampler.transition=ar"),
        "ppo": Cell("digits/mask_ppo"),
        "grpo as UniGRPO": Cell("digits/unigrpo"),
        "grpo as diffu-GRPO": Cell("digits/diffu_grpo"),
        "grpo as coupled-GRPO": Cell("digits/coupled_grpo"),
        "gspo as GDPO": Cell("digits/gdpo"),
        "dpo": _masked("dpo={beta: 0.1}"),
        "dpo on the bound": _masked("dpo={beta: 0.1, view: elbo}", DRAWS),
        "dgpo": _masked("dgpo={beta: 1.0}", "train.draws=2"),
        "rwr": _masked("rwr={temperature: 0.5, view: steps}", "train.learning_rate=3e-4"),
        "best_of_n": _masked("best_of_n={keep: 2, view: steps}", "train.learning_rate=3e-4"),
        "best_of_n on the bound": _masked("best_of_n={keep: 2}", DRAWS, "train.learning_rate=1e-4"),
        "awm": _masked("awm={epsilon: 1.0}", "train.draws=2"),
        "wd1": Cell("digits/wd1"),
        "nft": _masked("nft={}", "train.draws=2", LAGGING),
    },
    "diffusion": {
        "grpo": Cell("digits/flow_grpo"),
        "grpo as DanceGRPO": Cell("digits/dance_grpo"),
        "grpo as MixGRPO": Cell("digits/mix_grpo"),
        "grpo as Flow-GRPO-Fast": Cell("digits/flow_grpo_fast"),
        "reinforce": _diffusion("reinforce={}"),
        "dr_grpo": _diffusion("dr_grpo={epsilon: 1e-3, over: mean}"),
        "dapo": _diffusion("dapo={epsilon: 1e-3, over: mean}", "filter=null"),
        "bnpo": _diffusion("bnpo={epsilon: 1e-3, over: mean}"),
        "gspo": _diffusion("gspo={epsilon: 5e-4}"),
        "gmpo": _diffusion("gmpo={epsilon: 0.06}"),
        "cispo": _diffusion("cispo={epsilon_high: 5, over: mean}"),
        "sapo": _diffusion("sapo={}"),
        "rloo": _diffusion("rloo={epsilon: 1e-3}"),
        "reinforce_pp": _diffusion("reinforce_pp={epsilon: 1e-3, over: mean}"),
        "grpo_guard": Cell("digits/grpo_guard"),
        "flow_dppo": Cell("digits/flow_dppo"),
        "ppo": Cell("digits/diffusion_ppo"),
        "dpo": Cell("digits/d3po"),
        "dpo on the bound": Cell("digits/diffusion_dpo"),
        "dgpo": Cell("digits/dgpo"),
        "rwr": Cell("digits/rwr"),
        "best_of_n": Cell("digits/raft"),
        "awm": Cell("digits/awm"),
        "wd1": _diffusion(
            "wd1={}", DRAWS, *SIGMA, "train.iterations=120", "train.learning_rate=1e-4"
        ),
        "nft": Cell("digits/diffusion_nft"),
        "reward_gradient as DRaFT": Cell("digits/draft"),
        "reward_gradient as ReFL": Cell("digits/refl"),
    },
    "autoregressive": {
        "grpo": Cell("digits/grpo"),
        "reinforce": _autoregressive("reinforce={}"),
        "dr_grpo": Cell("digits/dr_grpo"),
        "dapo": Cell("digits/dapo"),
        "bnpo": _autoregressive("bnpo={epsilon: 0.2, epsilon_high: 0.28}", TWO),
        "gspo": Cell("digits/gspo"),
        "gmpo": Cell("digits/gmpo"),
        "cispo": Cell("digits/cispo"),
        "sapo": Cell("digits/sapo"),
        "rloo": Cell("digits/rloo"),
        "reinforce_pp": Cell("digits/reinforce_pp"),
        "grpo_guard": _autoregressive("grpo_guard={epsilon: 0.2, over: sum}", TWO),
        "flow_dppo": _autoregressive("flow_dppo={threshold: 1e-2}", TWO),
        "ppo": Cell("digits/ppo"),
        "dpo": Cell("digits/dpo"),
        "dgpo": _autoregressive("dgpo={beta: 0.1}"),
        "rwr": _autoregressive("rwr={temperature: 0.5}"),
        "best_of_n": _autoregressive("best_of_n={keep: 2}"),
        "awm": _autoregressive("awm={epsilon: 1.0}", TWO),
        "wd1": _autoregressive("wd1={}"),
        "nft": _autoregressive("nft={}", LAGGING),
    },
    "masked, random release": {"grpo": Cell("digits/random_release")},
    "diffusion, DDPM": {"grpo as DDPO": Cell("digits/ddpo")},
}
"""Model -> objective (and the algorithm or view where there are several) -> how it runs."""
