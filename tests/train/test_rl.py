"""GRPO and PPO on rollouts of a scripted model, and what a rollout is made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from riverrun.base.errors import CapacityError, ConfigError, InputError
from riverrun.base.fakes import FakeModel
from riverrun.base.protocols import Completion, Request
from riverrun.base.types import Message, Usage
from riverrun.data.packing import Group
from riverrun.data.tokens import TokenRow
from riverrun.models.load import Checkpoint, load_checkpoint
from riverrun.train.objectives import formulas
from riverrun.train.objectives.config import GRPOConfig, PPOConfig, RolloutConfig
from riverrun.train.objectives.reference import label_logprobs
from riverrun.train.objectives.rewards import Problem, judge, make_reward
from riverrun.train.objectives.rl import GRPO, PPO
from riverrun.train.objectives.rollout import AnswerRows, RolloutPack, Rollouts, pack_groups, seed_of
from riverrun.wire.codec import get_codec
from tests.tiny_model import write_tiny
from tests.train.tiny_policy import gradient, move, policy

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "trl_vectors.json").read_text())
PROBLEMS = [
    Problem(str(n), (Message.of("user", f"What is {n} plus {n + 1}?"),), answer=str(2 * n + 1)) for n in range(5)
]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load_checkpoint(write_tiny(Path(tmp_path_factory.mktemp("tiny"))))


def answer_rows(opened: Checkpoint) -> AnswerRows:
    return AnswerRows(opened.tokenizer, opened.template, get_codec("hermes"))


def guesses(request: Request) -> str:
    """Right or wrong by the seed, as a sampling model is."""
    assert request.params.seed is not None
    numbers = [int(word.strip("?")) for word in request.messages[-1].text.split() if word.strip("?").isdigit()]
    return f"It is {sum(numbers) + request.params.seed % 3}."


def rollouts(opened: Checkpoint, learner: Any, *, model: Any = None, **changes: Any) -> Rollouts:
    config, reward = RolloutConfig(problems=3, answers=4), changes.pop("reward", make_reward("exact_number"))
    return Rollouts(
        model or FakeModel(guesses),
        PROBLEMS,
        reward,
        answer_rows(opened),
        learner,
        config,
        micro_tokens=512,
        seed=1,
        **changes,
    )


def groups(count: int = 3, answers: int = 4, seed: int = 0) -> list[Group]:
    generator = torch.Generator().manual_seed(seed)

    def draw(number: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 320, (number,), generator=generator).tolist())

    out = []
    for p in range(count):
        prompt = draw(18 + p)
        own = [draw(2 + (p + k) % 4) for k in range(answers)]
        rows = [TokenRow(f"{p}/{k}", prompt + o, (False,) * len(prompt) + (True,) * len(o)) for k, o in enumerate(own)]
        out.append(Group(tuple(rows), len(prompt) - 1))
    return out


REWARDS = np.array([[1.0, 0.0, 0.0, 1.0], [0.2, 0.9, 0.4, 0.1], [1.0, 1.0, 0.0, 1.0]])


# ---- rollouts -----------------------------------------------------------------------------------------------------


def test_an_answer_is_learned_with_the_token_that_ends_it(opened: Checkpoint) -> None:
    rows, problem = answer_rows(opened), PROBLEMS[1]

    def made(reason: Any, stop: str = "", raw: str = "It is 3.") -> tuple[list[int], str]:
        completion = Completion(Message.of("assistant", raw), reason, Usage(), raw)
        row = rows(problem, completion, stop, "x")
        learned = [i for i, flag in zip(row.ids, row.learned, strict=True) if flag]
        before = opened.template.encode(opened.tokenizer, problem.messages)
        assert list(row.ids) == before + learned
        return learned, opened.tokenizer.decode(learned, skip_special=False)

    assert made("stop")[1] == "It is 3.<|im_end|>"
    assert made("length")[1] == "It is 3."
    assert made("stop", stop="\n")[1] == "It is 3.\n", "the text that ended it was sampled, too"
    assert made("stop", raw="")[1] == "<|im_end|>"
    plain = Problem("p", prompt="1 + 1 =", answer="2")
    row = rows(plain, Completion(Message.of("assistant", " 2"), "stop", Usage(), " 2"), "", "x")
    assert opened.tokenizer.decode(list(row.ids), skip_special=False).startswith("1 + 1 = 2")
    assert row.ids[-1] == opened.tokenizer.eos_id


def test_a_rollout_asks_every_problem_in_turn_with_seeds_of_its_own(opened: Checkpoint) -> None:
    model = FakeModel(guesses)
    made = rollouts(opened, GRPO(policy()), model=model)
    for step in range(5):
        made.batch(step)
    asked = [problem.id for rollout in range(5) for problem in made.chosen(rollout)]
    assert sorted(asked) == sorted([p.id for p in PROBLEMS] * 3), "15 places, 5 problems: each three times"
    assert len(set(asked[:5])) == 5
    seeds = [request.params.seed for request in model.requests]
    assert len(set(seeds)) == len(seeds) == 5 * 3 * 4
    again = FakeModel(guesses)
    other = rollouts(opened, GRPO(policy()), model=again)
    other.batch(3)
    assert [r.params.seed for r in again.requests] == seeds[3 * 12 : 4 * 12], "step 3 does not need those before it"
    assert seed_of(0, 1, "a", 2) != seed_of(0, 2, "a", 1)


def test_one_rollout_serves_several_steps_and_survives_a_restart(opened: Checkpoint, tmp_path: Path) -> None:
    """The second step of a rollout needs the log-probabilities of weights that are gone after the first."""
    model, asked = policy(), FakeModel(guesses)
    learner = GRPO(model, GRPOConfig(iterations=2, kl_weight=0.1))
    refreshed: list[int] = []
    made = rollouts(
        opened, learner, model=asked, iterations=2, work=tmp_path, identity="a", refresh=lambda: refreshed.append(1)
    )
    first = made.batch(0)
    move(model)
    assert made.batch(1) is first
    assert len(asked.requests) == 12
    assert len(refreshed) == 1

    def again(identity: str) -> tuple[FakeModel, list[RolloutPack]]:
        model = FakeModel(guesses)
        return model, rollouts(opened, learner, model=model, iterations=2, work=tmp_path, identity=identity).batch(1)

    silent, same = again("a")
    assert not silent.requests, "it is read, not written again"
    for one, other in zip(first, same, strict=True):
        assert one.groups == other.groups
        for name in ("rewards", "advantages", "old", "reference"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name
        assert one.to_json() == other.to_json()
    busy, other_run = again("b")
    assert len(busy.requests) == 12
    assert not np.array_equal(other_run[0].old, first[0].old), "of the weights as they are now"


def test_groups_are_packed_and_long_ones_divided() -> None:
    made = groups(5, 4)
    for limit in (30, 60, 200):
        packs = pack_groups(made, limit)
        assert [row.id for pack in packs for row in pack.rows] == [row.id for group in made for row in group.rows]
        assert all(pack.computed_tokens <= limit for pack in packs)
    with pytest.raises(CapacityError, match=r"answer '0/0' has 20 tokens with its prompt, a pack holds 19"):
        pack_groups(made, 19)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda problem, text: float("nan"), r"the reward of problem '\d' is nan for the answer 'It is \d+\.'"),
        (lambda problem, text: 1 / 0, r"the reward of problem '\d' failed \(ZeroDivisionError: division by zero\)"),
        (lambda problem, text: "much", r"the reward of problem '\d' failed \(ValueError"),
        (lambda problem, text: 0.0, "all 12 answers of the first rollout earned 0, so there is nothing to learn from"),
    ],
)
def test_rewards_that_are_none_are_named(opened: Checkpoint, reward: Callable[..., Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        rollouts(opened, GRPO(policy()), reward=reward).batch(0)


def test_problems_are_checked(opened: Checkpoint) -> None:
    with pytest.raises(InputError, match="must have either messages or a prompt"):
        Problem("x")
    with pytest.raises(InputError, match="there is no problem to learn from"):
        Rollouts(FakeModel(), [], make_reward("regex"), answer_rows(opened), GRPO(policy()), RolloutConfig())
    twice = [Problem("1", prompt="a"), Problem("1", prompt="b")]
    with pytest.raises(InputError, match="two problems have the same id"):
        Rollouts(FakeModel(), twice, make_reward("regex"), answer_rows(opened), GRPO(policy()), RolloutConfig())


# ---- grpo ---------------------------------------------------------------------------------------------------------


def test_without_later_steps_the_gradient_is_that_of_weighted_log_probabilities() -> None:
    """The ratio is 1: the surrogate's gradient is -advantage * that of the log-probability."""
    model = policy(moved=True)
    objective = GRPO(model, GRPOConfig(loss_type="dapo"))
    (pack,) = objective.prepare(groups(), REWARDS, 4096)
    assert pack.old is None
    got = gradient(model, objective(pack).total)
    logprobs = label_logprobs(model, pack)
    wanted = gradient(model, -(logprobs * torch.from_numpy(pack.advantages).float()).sum())
    assert float((got - wanted).norm() / wanted.norm()) < 1e-5
    assert objective.count(pack) == pack.label_tokens


@pytest.mark.parametrize("kind", ["grpo", "bnpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize("kl", [0.0, 0.2])
def test_grpo_divides_as_trl_does(kind: str, kl: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole objective with the shared tensors in place of a model's log-probabilities."""
    given = VECTORS["grpo"]
    lengths = given["lengths"]
    made = [
        Group(tuple(TokenRow(f"{p}/{k}", (5,) * (2 + n), (False, False, *(True,) * n)) for k, n in enumerate(part)), 1)
        for p, part in enumerate((lengths[:4], lengths[4:]))
    ]

    def flat(name: str) -> np.ndarray:
        return np.concatenate([np.array(row[:n]) for row, n in zip(given[name], lengths, strict=True)])

    longest = RolloutConfig(max_tokens=given["max_tokens"])
    config = GRPOConfig(loss_type=kind, kl_weight=kl, clip_high=0.28, iterations=2, rollouts=longest)
    objective = GRPO(policy(), config)
    monkeypatch.setattr(objective, "_rows", lambda model, pack: (None, torch.from_numpy(flat("policy"))))
    (pack,) = objective.prepare(made, np.array(given["rewards"]), 4096)
    assert pack.advantages.tolist() == pytest.approx(
        np.repeat(np.array(given["advantages"]["group"]).ravel(), lengths).tolist(), abs=1e-6
    )
    shared = RolloutPack(pack.groups, pack.rewards, pack.advantages, flat("old"), flat("reference"))
    loss = objective(shared)
    assert float(loss.total) / objective.count(shared) == pytest.approx(given[f"{kind}/{kl}"], abs=1e-6)


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize("kl", [0.0, 0.1])
def test_the_cut_into_packs_changes_nothing(kind: str, kl: float) -> None:
    """Also not that problems whose answers all earned the same are left out."""
    made = groups(4)
    rewards = np.concatenate([REWARDS, np.full((1, 4), 0.1)])
    results = []
    for limit in (4096, 60, 30):
        model = policy()
        objective = GRPO(model, GRPOConfig(loss_type=kind, kl_weight=kl, iterations=2))
        packs = objective.prepare(made, rewards, limit)
        move(model)
        count = sum(objective.count(pack) for pack in packs)
        assert count == (sum(r.label_tokens for g in made for r in g.rows) if kind == "dapo" else 16)
        assert sum(len(pack.rows) for pack in packs) == (16 if kl else 12)
        losses = [objective(pack) for pack in packs]
        total = torch.stack([loss.total for loss in losses]).sum() / count
        assert sum(loss.metrics["reward"] for loss in losses) / count == pytest.approx(rewards.mean())
        results.append((float(total.detach()), gradient(model, total)))
    assert len(packs) > 3
    for value, slope in results[1:]:
        assert value == pytest.approx(results[0][0], rel=1e-4, abs=1e-6)
        assert float((slope - results[0][1]).norm() / results[0][1].norm()) < 1e-4


def test_equal_rewards_teach_nothing() -> None:
    model = policy(moved=True)
    for config in (GRPOConfig(), GRPOConfig(loss_type="bnpo")):
        objective = GRPO(model, config)
        packs = objective.prepare(groups(), np.full((3, 4), 0.3), 4096)
        assert not gradient(model, objective(packs[0]).total).any()


def test_clipping_stops_what_has_moved_too_far() -> None:
    model = policy()
    objective = GRPO(model, GRPOConfig(iterations=2, clip_low=0.01, clip_high=0.01))
    (pack,) = objective.prepare(groups(), REWARDS, 4096)
    move(model)
    loss = objective(pack)
    assert loss.metrics["clipped"] / objective.count(pack) > 0.3
    with torch.no_grad():
        logprobs = label_logprobs(model, pack).double()
    ratio = (logprobs - torch.from_numpy(pack.old)).exp()  # type: ignore[arg-type]
    weight = torch.from_numpy(pack.advantages)
    wanted = -torch.minimum(ratio * weight, ratio.clamp(0.99, 1.01) * weight).sum()
    assert float(loss.total.detach()) == pytest.approx(float(wanted), rel=1e-4)


def test_a_temperature_is_that_of_what_is_learned() -> None:
    model = policy(moved=True)
    objective = GRPO(model, GRPOConfig(iterations=2, rollouts=RolloutConfig(temperature=2.0)))
    (pack,) = objective.prepare(groups(1), REWARDS[:1], 4096)
    row = pack.rows[0]
    attend = model.packed_groups([(0, [len(row.ids)])])
    with torch.no_grad():
        logits = model.logits(model(torch.tensor(row.ids), attend.positions, attend)) / 2.0
    wanted = [float(torch.log_softmax(logits[i - 1], 0)[row.ids[i]]) for i in range(1, len(row.ids)) if row.learned[i]]
    assert pack.old is not None
    assert pack.old[: len(wanted)].tolist() == pytest.approx(wanted, rel=1e-4)


def test_a_distance_needs_a_start() -> None:
    with pytest.raises(ConfigError, match=r"grpo with kl_weight 0\.1 needs the model of the start"):
        GRPO(policy(full=True), GRPOConfig(kl_weight=0.1))
    model = policy()
    objective = GRPO(model, GRPOConfig(kl_weight=0.5))
    (pack,) = objective.prepare(groups(), REWARDS, 4096)
    assert objective(pack).metrics["kl"] == pytest.approx(0.0, abs=1e-9)
    move(model)
    loss = objective(pack)
    with torch.no_grad():
        logprobs = label_logprobs(model, pack)
    distance = formulas.k3(logprobs, torch.from_numpy(pack.reference).float())  # type: ignore[arg-type]
    assert loss.metrics["kl"] / objective.count(pack) == pytest.approx(float(distance.mean()), rel=1e-4)
    assert float(distance.mean()) > 1e-3


# ---- ppo ----------------------------------------------------------------------------------------------------------


def test_ppo_is_its_formulas() -> None:
    model = policy()
    config = PPOConfig(kl_weight=0.3, gamma=0.9, lam=0.8, iterations=2)
    objective = PPO(model, config)
    torch.nn.init.normal_(objective.value_weight, std=0.1, generator=torch.Generator().manual_seed(3))
    move(model)
    made = groups()
    packs = objective.prepare(made, REWARDS, 60)
    assert len(packs) > 1
    whole = np.concatenate([pack.advantages for pack in packs])
    assert whole.mean() == pytest.approx(0.0, abs=1e-9)
    assert whole.std(ddof=1) == pytest.approx(1.0, abs=1e-6)
    pack = packs[0]
    assert pack.old is not None and pack.reference is not None and pack.values is not None and pack.returns is not None  # noqa: PT018
    size = pack.rows[0].label_tokens
    earned = -0.3 * (pack.old[:size] - pack.reference[:size])
    earned[-1] += REWARDS[0, 0]
    _, returns = formulas.gae(torch.from_numpy(earned), torch.from_numpy(pack.values[:size]), 0.9, 0.8)
    assert pack.returns[:size].tolist() == pytest.approx(returns.tolist(), rel=1e-6)
    move(model, seed=9)
    loss = objective(pack)
    assert objective.count(pack) == pack.label_tokens
    with torch.no_grad():
        logprobs = label_logprobs(model, pack).double()
    policy_loss = formulas.clipped_surrogate(
        logprobs, torch.from_numpy(pack.old), torch.from_numpy(pack.advantages), 0.2, 0.2
    ).sum()
    assert loss.metrics["policy_loss"] == pytest.approx(float(policy_loss), rel=1e-4)
    total = loss.metrics["policy_loss"] + config.value_weight * loss.metrics["value_loss"]
    assert float(loss.total.detach()) == pytest.approx(total, rel=1e-5)
    loss.total.backward()  # type: ignore[no-untyped-call]
    assert objective.value_weight.grad is not None
    assert objective.value_weight.grad.any()


def test_ppo_learns_the_value_of_its_answers() -> None:
    model = policy()
    objective = PPO(model, PPOConfig(kl_weight=0.0, iterations=20, value_weight=1.0, value_clip=10.0))
    packs = objective.prepare(groups(), REWARDS, 4096)
    learns = [p for p in model.parameters() if p.requires_grad] + list(objective.parameters().values())
    optimizer = torch.optim.AdamW(learns, lr=3e-3)
    seen = []
    for _ in range(15):
        loss = objective(packs[0])
        seen.append(loss.metrics["value_loss"])
        optimizer.zero_grad()
        (loss.total / objective.count(packs[0])).backward()
        optimizer.step()
        model.refresh()
    assert seen[-1] < 0.5 * seen[0]


# ---- rewards ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "answer", "text", "value"),
    [
        ("exact_number", {}, "7", "3 + 4 = 7.", 1.0),
        ("exact_number", {}, "7", "7, or perhaps 8", 0.0),
        ("exact_number", {"first": True}, "7", "7, or perhaps 8", 1.0),
        ("exact_number", {}, "1234.50", "It is 1,234.5", 1.0),
        ("exact_number", {}, "-3", "minus three is -3", 1.0),
        ("exact_number", {}, "7", "seven", 0.0),
        ("exact_number", {}, "7", "17", 0.0),
        ("regex", {}, r"^\d+$", "12", 1.0),
        ("regex", {}, r"^\d+$", "12.", 0.0),
        ("regex", {"pattern": "ok"}, "", "it is ok", 1.0),
        ("json_schema", {"schema": {"type": "object", "required": ["a"]}}, "", '{"a": 1}', 1.0),
        ("json_schema", {"schema": {"type": "object", "required": ["a"]}}, "", '{"b": 1}', 0.0),
        ("json_schema", {"schema": {"type": "array", "items": {"type": "integer"}, "maxItems": 2}}, "", "[1, 2]", 1.0),
        ("json_schema", {"schema": {"type": "array", "items": {"type": "integer"}}}, "", "[1, true]", 0.0),
        ("json_schema", {"schema": {"enum": [1, "x"]}}, "", "true", 0.0),
        ("json_schema", {"schema": {"properties": {"a": {}}, "additionalProperties": False}}, "", '{"b": 1}', 0.0),
        ("json_schema", {"schema": {"type": "number", "minimum": 2}}, "", "1", 0.0),
        ("json_schema", {"schema": {}}, "", "not json", 0.0),
    ],
)
def test_named_rewards(name: str, options: dict[str, Any], answer: str, text: str, value: float) -> None:
    problem = Problem("p", prompt="?", answer=answer)
    assert judge(make_reward(name, **options), problem, text) == value


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("exact_number", {}, r"problem 'p' failed \(its answer 'x' is not a number\)"),
        ("json_schema", {}, "it has no `schema` in its data"),
        ("json_schema", {"schema": {"allOf": []}}, "keyword 'allOf' is not supported"),
        ("json_schema", {"schema": {"type": "text"}}, "type 'text' is not one of"),
    ],
)
def test_a_problem_that_cannot_be_judged_is_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        judge(make_reward(name, **options), Problem("p", prompt="?", answer="x"), "{}")


def test_unknown_rewards_and_options_are_named() -> None:
    with pytest.raises(InputError, match=r"unknown reward 'exact_numbers'. Did you mean 'exact_number'"):
        make_reward("exact_numbers")
    with pytest.raises(ConfigError, match=r"reward 'regex': .*unexpected keyword argument 'flags'"):
        make_reward("regex", flags=1)
    with pytest.raises(InputError, match=r"the pattern '\(' is not a regular expression"):
        make_reward("regex", pattern="(")
