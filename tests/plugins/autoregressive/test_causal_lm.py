"""Published models through the real code: loaded, prompted, drawn from, trained on texts."""

import copy
import json
import textwrap

import pytest
import torch
from pydantic import ValidationError
from transformers import GPT2Config, GPT2LMHeadModel

from genrl_autoregressive import CausalLmConfig, TokenConfig, TokenSampler
from genrl_core import (
    GenRLError,
    Media,
    Plan,
    Prompt,
    RecipeError,
    Reward,
    load_recipe,
    select_rows,
    train,
)
from genrl_core.run.assembly import build_trainer
from genrl_core.run.saving import save
from genrl_core.testing import check_sampler

from .conftest import NETWORKS, save_tokenizer

PROMPTS = [Prompt("a", "1+2="), Prompt("b", "b"), Prompt("c", "0123", negative="a")]


@pytest.fixture(params=NETWORKS)
def policy(request, published):
    return CausalLmConfig(weights=str(published[request.param])).build()


def test_loading_takes_weights_vocabulary_and_end(policy, published):
    assert policy.num_symbols == 12
    assert policy.end_tokens == (0,)
    assert not policy.network.training
    assert not any(isinstance(m, torch.nn.Dropout) and m.p for m in policy.network.modules())
    assert all(v == 0 for n, v in policy.network.config.to_dict().items() if "pdrop" in n)


@pytest.mark.parametrize("fields", [{}, {"guidance_scale": 3.0, "temperature": 0.8}])
def test_conformance(policy, fields):
    sampler = TokenConfig(max_new_tokens=6, **fields).build()
    check_sampler(policy, sampler, PROMPTS, samples=3, tolerance=1e-5)


def test_encoding_and_texts(policy):
    cond = policy.encode(PROMPTS)
    assert cond["prompt_mask"].sum(1).tolist() == [4, 1, 4]
    assert cond["negative_mask"].sum(1).tolist() == [1, 1, 1]
    assert cond["negative"][:, 0].tolist() == [1, 1, 9]  # <begin>, or the prompt's negative text
    final = policy.tokenize(["12", "", "a+b"])
    assert final["length"].tolist() == [3, 1, 4]
    assert policy.decode(final).texts == ("12", "", "a+b")
    assert policy.decode(final).kind == "text"


def test_equals_the_model_called_plainly(policy):
    """Log-likelihood of one text by transformers alone, without padding."""
    final = policy.tokenize(["10+", "2"])
    found = policy.elbo(final, policy.encode(PROMPTS[:2]), {})
    for row, (prompt, text) in enumerate([("1+2=", "10+"), ("b", "2")]):
        ids = policy.tokenizer(prompt)["input_ids"]
        answer = [*policy.tokenizer(text)["input_ids"], 0]
        logits = policy.network(torch.tensor([ids + answer])).logits[0]
        rows = logits[len(ids) - 1 : -1].log_softmax(-1)
        expected = rows[range(len(answer)), answer].sum()
        torch.testing.assert_close(found[row, 0], expected, rtol=0, atol=1e-5)


def test_agrees_with_generate_of_transformers(policy):
    """The likeliest tokens, one after the other, are those of ``generate`` without sampling."""
    sampler = TokenConfig(max_new_tokens=5, temperature=1e-4).build()
    plan = Plan(0, 0, 0, tuple(PROMPTS[:1]), torch.tensor([0]), torch.tensor([0]))
    final = sampler.rollout(policy, policy.encode(PROMPTS[:1]), plan).final
    ids = torch.tensor([policy.tokenizer("1+2=")["input_ids"]])
    theirs = policy.network.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=5, pad_token_id=0
    )[0, 4:]
    assert final["tokens"][0, : final["length"][0]].tolist() == theirs.tolist()


def test_chat_template(published):
    policy = CausalLmConfig(weights=str(published["gpt2"]), chat_template=True).build()
    cond = policy.encode([Prompt("x", "12")])
    assert cond["prompt"].tolist() == [policy.tokenizer("12=")["input_ids"]]  # it adds the "="


@pytest.fixture
def with_tokenizer(published, tmp_path):
    """``with_tokenizer(frame, policy={}, **tokenizer)``: the GPT-2 beside another tokenizer."""

    def make(frame="$A", characters="01234+=abc", policy=None, **fields):
        for name in ("config.json", "generation_config.json", "model.safetensors"):
            (tmp_path / name).write_bytes((published["gpt2"] / name).read_bytes())
        save_tokenizer(tmp_path, characters, frame, **fields)
        return CausalLmConfig(weights=str(tmp_path), **(policy or {})).build()

    return make


TOKENS = [0, 1, 2, 3, 4, 5, 7, 8]
"""Of ``with_tokenizer(characters="0123 +=")``; id 6 and ids 9 to 11 of the head are none."""


@pytest.fixture
def padded(with_tokenizer):
    """A network in float64 whose head has 12 ids, eight of them tokens, and other weights of it."""
    policy = with_tokenizer(characters="0123 +=")
    policy.network.double()
    other = copy.deepcopy(policy.network)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for parameter in other.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return policy, other


def alone(network, cond, side, row, tokens):
    """The logits of each of the tokens that are any, by one plain call: ``[T, 8]``."""
    prompt = cond[side][row][cond[f"{side}_mask"][row]]
    logits = network(input_ids=torch.cat([prompt, tokens]).unsqueeze(0)).logits
    return logits[0, len(prompt) - 1 : -1, TOKENS]


@pytest.mark.parametrize(
    "fields",
    [{}, {"guidance_scale": 2.5, "temperature": 1.3}, {"top_k": 7}, {"top_k": 10, "top_p": 0.99}],
)
def test_an_id_that_is_no_token_is_never_drawn(padded, fields):
    policy, _ = padded
    sampler = TokenConfig(max_new_tokens=6, **fields).build()
    group = torch.arange(3).repeat_interleave(40)
    plan = Plan(0, 0, 0, tuple(PROMPTS), group, torch.arange(40).repeat(3))
    final = sampler.rollout(policy, policy.encode(plan.sample_prompts()), plan).final
    rows = zip(final["tokens"], final["length"], strict=True)
    drawn = [tokens[:length].tolist() for tokens, length in rows]
    assert {token for row in drawn for token in row} == set(TOKENS)
    written = [sum(token > 1 for token in row) for row in drawn]  # 0 and 1 are special
    assert [len(text) for text in policy.decode(final).texts] == written


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_densities_entropies_and_divergences_are_those_of_the_tokens(padded, guidance):
    """Against plain calls of each row alone, the distributions taken over the tokens that are."""
    policy, other = padded
    sampler = TokenConfig(max_new_tokens=5, guidance_scale=guidance, temperature=1.3).build()
    plan = Plan(0, 0, 0, tuple(PROMPTS), torch.arange(3), torch.zeros(3, dtype=torch.int64))
    cond = policy.encode(PROMPTS)
    trajectory = sampler.rollout(policy, cond, plan)
    b = torch.arange(3)
    before, policy.network = policy.network, other
    with torch.no_grad():
        reference, _ = sampler.densities(policy, trajectory, 0 * b, b)
    policy.network = before
    densities, action = sampler.densities(policy, trajectory, 0 * b, b)
    scored, entropy = densities.log_prob(action), densities.entropy()
    divergence = densities.kl(reference)
    for row in range(3):
        length = int(trajectory.final["length"][row])
        tokens = trajectory.final["tokens"][row, :length]
        sides = [
            [alone(network, cond, side, row, tokens) for side in ("prompt", "negative")]
            for network in (policy.network, other)
        ]
        p, q = (((w + guidance * (g - w)) / 1.3).log_softmax(-1) for g, w in sides)
        drawn = torch.tensor([TOKENS.index(token) for token in tokens.tolist()])
        log_probs = p.gather(-1, drawn.unsqueeze(-1)).squeeze(-1)
        close = {"rtol": 0, "atol": 1e-9}
        torch.testing.assert_close(trajectory.terms.log_probs[:length, row], log_probs, **close)
        torch.testing.assert_close(scored[row, :length], log_probs, **close)
        torch.testing.assert_close(entropy[row, :length], -(p.exp() * p).sum(-1), **close)
        kl = (p.exp() * (p - q)).sum(-1)
        torch.testing.assert_close(divergence[row, :length], kl, **close)
    (scored + entropy + divergence).sum().backward()
    assert all(p.grad.isfinite().all() for p in policy.network.parameters() if p.grad is not None)


def test_predictions_of_several_weights_mix_over_the_tokens(padded):
    """As NFT mixes them, on either side of other weights; bounds are of the tokens too."""
    policy, other = padded
    final, cond = policy.tokenize(["10+", "2", "33="]), policy.encode(PROMPTS)
    denoising = policy.denoising(final, cond, {})
    before, policy.network = policy.network, other
    theirs = policy.denoising(final, cond, {}).prediction.detach()
    policy.network = before
    bound = policy.elbo(final, cond, {})[:, 0]
    for weight in (1.0, 0.4, -0.7):
        error = denoising.error(weight * denoising.prediction + (1 - weight) * theirs)
        for row in range(3):
            tokens = final["tokens"][row, : int(final["length"][row])]
            mine, its = (alone(n, cond, "prompt", row, tokens) for n in (before, other))
            mixed = (weight * mine + (1 - weight) * its).log_softmax(-1)
            places = torch.tensor([[TOKENS.index(token)] for token in tokens.tolist()])
            exact = mixed.gather(-1, places).sum()
            torch.testing.assert_close(error[row], -exact / len(tokens), rtol=0, atol=1e-6)
            if weight == 1:
                torch.testing.assert_close(bound[row], exact, rtol=0, atol=1e-9)
        error.sum().backward(retain_graph=True)
    assert all(p.grad.isfinite().all() for p in before.parameters() if p.grad is not None)


BEGUN = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}="


@pytest.mark.parametrize("templated", [False, True])
@pytest.mark.parametrize("frame", ["$A", "<begin> $A", "$A <end>", "<begin> $A <end>"])
def test_a_prompt_is_given_one_beginning_at_most_and_no_end(with_tokenizer, frame, templated):
    """Token ids by hand: end 0, beginning 1, then the characters."""
    policy = with_tokenizer(frame, policy={"chat_template": templated}, chat_template=BEGUN)
    texts = ["12", "", "<begin>3", "0<end>"]
    cond = policy.encode([Prompt(text, text, negative=text) for text in texts])
    begin = [1] if "<begin>" in frame else []
    expected = [[*begin, 3, 4], [1], [1, 5], [*begin, 2, 0]]
    if templated:  # it adds what begins and the "="; an empty negative has no turn
        expected = [[1, 3, 4, 8], [1, 8], [1, 1, 5, 8], [1, 2, 0, 8]]
    for side in ("prompt", "negative"):
        rows = zip(cond[side], cond[f"{side}_mask"], strict=True)
        found = [row[mask].tolist() for row, mask in rows]
        assert found[0] == expected[0] and found[2:] == expected[2:], side
        assert found[1] == (expected[1] if side == "prompt" else [1])


@pytest.mark.parametrize("keep", [False, True])
def test_a_reward_can_see_special_tokens_of_an_answer(with_tokenizer, keep):
    """A tag that the tokenizer knows as special token, through the parts of a rollout."""
    fields = {"policy": {"keep_special_tokens": True}} if keep else {}
    try:
        policy = with_tokenizer(characters="0123+=<>", extra_special_tokens=["<", ">"], **fields)
    except ValidationError:
        pytest.fail("no field of the policy asks for special tokens")
    final = policy.tokenize(["<1+2>3", "0", "<"]) | {"length": torch.tensor([7, 1, 2])}
    media = Media.concat(
        [policy.decode(select_rows(final, torch.tensor([row]))) for row in (0, 1, 2)]
    )
    texts = ("<1+2>3", "0", "<") if keep else ("1+23", "0", "")
    raw = ("<1+2>3<end>", "0", "<<end>")  # the second is cut off before its end
    assert media.texts == texts
    assert getattr(media, "raw_texts", None) == raw
    chosen = media.select([2, 0])
    assert chosen.texts == (texts[2], texts[0]) and chosen.raw_texts == (raw[2], raw[0])
    assert len(chosen) == 2 and chosen.pixels is None


def test_media_without_raw_texts_are_joined_without_them():
    told, silent = Media("text", texts=("a",), raw_texts=("a.",)), Media("text", texts=("b",))
    joined = Media.concat([told, silent])
    assert joined.texts == ("a", "b") and joined.raw_texts is None
    assert joined.select([1]).texts == ("b",) and silent.select([0]).raw_texts is None
    pixels = torch.arange(4, dtype=torch.uint8).view(2, 1, 1, 2).expand(-1, 3, -1, -1)
    shown = Media("image", pixels, ("a", "b")).select([1])
    assert len(shown) == 1 and shown.pixels[0, 0, 0].tolist() == [2, 3] and shown.texts == ("b",)


def test_base_names_the_model_of_weights_that_are_ours(published):
    policy = CausalLmConfig(base=str(published["gpt2"])).build()
    assert policy.num_symbols == 12
    assert CausalLmConfig(weights=str(published["gpt2"]), dtype="bfloat16").build().elbo(
        policy.tokenize(["1"]), policy.encode(PROMPTS[:1]), {}
    ).dtype == torch.float32  # fmt: skip


def test_what_cannot_be_loaded_is_a_sentence(tmp_path, published):
    with pytest.raises(RecipeError, match=r"policy.weights is missing"):
        CausalLmConfig().build()
    with pytest.raises(RecipeError, match=r"cannot load .* config.json, model.safetensors"):
        CausalLmConfig(weights=str(tmp_path)).build()


def test_pickled_weights_are_refused(published, tmp_path):
    for path in published["gpt2"].iterdir():
        if path.suffix == ".json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(RecipeError, match="cannot load"):
        CausalLmConfig(weights=str(tmp_path)).build()


def test_a_path_that_is_no_folder_is_no_hub_id(tmp_path):
    with pytest.raises(RecipeError, match=r"there is no folder .*nothing\. Give one with config"):
        CausalLmConfig(weights=str(tmp_path / "nothing")).build()


def test_texts_without_a_token_are_still_ids(policy):
    policy.end_tokens = ()
    found = policy.tokenize(["", ""])
    assert found["tokens"].dtype == torch.int64 and found["length"].tolist() == [0, 0]


def test_lora_adapts_every_linear_module_but_the_head(policy):
    of = {
        "gpt2": ("c_attn", "c_fc", "c_proj"),
        "llama": ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"),
    }
    assert policy.lora_targets == of[policy.network.config.model_type]


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("weights", ["{}", "{lora: {rank: 2}}"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_texts_through_the_trainer(published, tmp_path, kind, weights):
    """Two iterations of GRPO with a KL from the reference, in closed form, guided."""
    (tmp_path / "prompts.txt").write_text("1+2=\n0+1=\n10+1=\n")
    text = f"""
        policy: {{use: causal_lm, weights: {json.dumps(str(published[kind]))}}}
        sampler: {{use: token, max_new_tokens: 4, guidance_scale: 1.5}}
        reward: {{arithmetic_correct: {{}}}}
        objective:
          grpo: {{epsilon: 0.2}}
          kl: {{weight: 0.05, estimator: analytic}}
        advantage: {{scale: none}}
        weights: {weights}
        prompts: {{file: prompts.txt, evaluate: prompts.txt}}
        train:
          {{iterations: 2, num_prompts: 3, num_generations: 8, learning_rate: 1e-2, num_updates: 2}}
        run: {{threads: 1, device: cpu}}
    """
    (tmp_path / "recipe.yaml").write_text(textwrap.dedent(text))
    records = list(train(load_recipe(str(tmp_path / "recipe.yaml"))))
    assert len(records) == 2
    for record in records:
        assert record.problem is None
        assert record.media.kind == "text"
        assert len(record.media) == 24
        assert record.metrics["drift"] < 1e-5
        assert record.metrics["kl"] >= 0
    assert records[1].metrics["kl"] > 0


class Long(Reward):
    """The length of an answer, so that an update has a direction."""

    def __call__(self, media, prompts):
        return [float(len(text)) + text.count("1") / 2 for text in media.texts]


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("weights", ["null", "{lora: {rank: 2}}"])
def test_a_run_begins_with_what_another_ended_with(published, tmp_path, weights):
    """``policy.weights`` names a run, and its own model is found in it; so on for a third run."""
    (tmp_path / "prompts.txt").write_text("1+2=\n0+1=\n")
    model, answers = str(published["llama"]), []
    for number in range(3):
        recipe = load_recipe({
            "policy": {"use": "causal_lm", "weights": model},
            "sampler": {"use": "token", "max_new_tokens": 4},
            "reward": {"arithmetic_correct": {}},
            "objective": {"reinforce": {}},
            "prompts": {"file": str(tmp_path / "prompts.txt")},
            "train": {"iterations": 1, "num_prompts": 2, "num_generations": 8,
                      "learning_rate": 2e-3},
        }, [f"weights={weights}", "run.device=cpu"])  # fmt: skip
        try:
            trainer, refused = build_trainer(recipe, rewards={"arithmetic_correct": Long()}), ""
        except RecipeError as error:
            refused = str(error)
        assert not refused
        cond = trainer.parts.policy.encode(PROMPTS[:1])
        begun = trainer.parts.policy.elbo(trainer.parts.policy.tokenize(["12"]), cond, {})
        if answers:
            torch.testing.assert_close(begun, answers[-1], rtol=0, atol=1e-5)
        trainer.step()
        ended = trainer.parts.policy.elbo(trainer.parts.policy.tokenize(["12"]), cond, {})
        assert (ended - begun).abs().max() > 1e-3, "a step that does nothing would prove nothing"
        answers.append(ended.detach())
        folder = tmp_path / f"run-{number}"
        save(trainer, recipe, folder)
        (folder / "recipe.resolved.yaml").write_text(recipe.to_yaml())
        model = str(folder)


class Forgetful(TokenSampler):
    """Draws with a temperature that its scores forget."""

    def rollout(self, *given):
        return TokenConfig(max_new_tokens=8, temperature=0.5).build().rollout(*given)


@pytest.fixture
def wide(tmp_path):
    """A model whose rounding in bfloat16 does depend on the rows and the cache."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        GPT2LMHeadModel(GPT2Config(
            vocab_size=12, n_positions=64, n_embd=96, n_layer=4, n_head=2, initializer_range=0.15,
            tie_word_embeddings=False, bos_token_id=1, eos_token_id=0,
        )).save_pretrained(tmp_path)  # fmt: skip
    save_tokenizer(tmp_path, "01234+=abc")
    return tmp_path


def in_bfloat16(folder, tmp_path, weights, sampler=None, **fields):
    """A run in bfloat16 whose recipe says nothing about the drift that it allows."""
    (tmp_path / "prompts.txt").write_text("1+2=\n0+1=\n10+1=\n")
    recipe = load_recipe({
        "policy": {"use": "causal_lm", "weights": str(folder), "dtype": "bfloat16"},
        "sampler": {"use": "token", **({"max_new_tokens": 8} | fields)},
        "reward": {"arithmetic_correct": {}},
        "objective": {"grpo": {"epsilon": 0.2}, "kl": {"weight": 0.1}}, "weights": weights,
        "prompts": {"file": str(tmp_path / "prompts.txt")},
        "train": {"iterations": 2, "num_prompts": 3, "num_generations": 8, "learning_rate": 1e-3,
                  "micro_batch_size": 5},
    })  # fmt: skip
    return build_trainer(recipe, sampler=sampler)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("weights", [{}, {"lora": {"rank": 2}}], ids=["full", "lora"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("kind", NETWORKS)
def test_bfloat16_trains_float32_within_its_tolerance(published, tmp_path, kind, guidance, weights):
    trainer = in_bfloat16(published[kind], tmp_path, weights, guidance_scale=guidance)
    assert {p.dtype for p in trainer.weight_sets.trainable.values()} == {torch.float32}
    try:
        first, second = trainer.step().metrics, trainer.step().metrics
    except GenRLError as error:
        pytest.fail(f"bfloat16's own rounding stops the run: {error}")
    assert first["kl"] == 0.0
    assert max(first["drift"], second["drift"]) < 0.6


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("weights", [{}, {"lora": {"rank": 2}}], ids=["full", "lora"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_rounding_of_bfloat16_stops_no_run(wide, guidance, weights):
    """It is above what float32 may drift; the divergence from the reference is 0 all the same."""
    trainer = in_bfloat16(wide, wide, weights, guidance_scale=guidance, max_new_tokens=40)
    try:
        found = trainer.step().metrics
    except GenRLError as error:
        pytest.fail(f"an honest run is stopped: {error}")
    assert found["kl"] == 0.0
    assert 1e-3 < found["drift"] < 0.6


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_forgotten_temperature_stops_a_run_in_bfloat16(published, tmp_path, kind):
    sampler = Forgetful(TokenConfig(max_new_tokens=8))
    with pytest.raises(GenRLError, match=r"tolerance is 1; the network computes in bfloat16"):
        in_bfloat16(published[kind], tmp_path, {}, sampler).step()
