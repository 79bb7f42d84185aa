"""The learned baselines: what they can see, what they learn, and that seeds decide."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import polars as pl
import pytest
import torch
from few_items import ITEMS, NUM_ITEMS, cycle, settings
from frames import popularity_alone
from torch.nn.utils import parametrize

from hatllm.baselines.bert4rec import BERT4Rec
from hatllm.baselines.ranks_of_scores import TitleIndex, predictions_of
from hatllm.baselines.sequences import sequences_of
from hatllm.config import ClozeConfig, DrosConfig, SequenceConfig
from hatllm.metrics.from_predictions import evaluate_predictions
from hatllm.training.id_model import (
    Fitted,
    Keeping,
    SequenceModel,
    _dropped_vectors,
    build_sequence_model,
    fit,
    scores,
)

KINDS = ("sasrec", "gru4rec", "bert4rec")
LENGTH = 5
INDEX = TitleIndex.of(ITEMS)
DROS = DrosConfig(weight=0.1, radius=1.0, popularity_power=0.05)
ARMS = {
    "sasrec": ("sasrec", settings()),
    "sasrec_bce": ("sasrec", settings(loss="bce", num_negatives=4, every_position=True)),
    "sasrec_ss": ("sasrec", settings(loss="sampled_softmax", num_negatives=6)),
    "sasrec_rectools": ("sasrec", settings(
        positions_from="newest", reads_padding=True, init_std=None, item_dropout=0.1,
        shared_embedding=True, every_position=True, loss="sampled_softmax", num_negatives=6,
    )),
    "sasrec_dros": ("sasrec", settings(loss="bce", num_negatives=4, dros=DROS, num_layers=1)),
    "esasrec": ("sasrec", settings(
        block="ligr", positions_from="newest", loss="sampled_softmax", num_negatives=6,
        shared_embedding=True, every_position=True,
    )),
    "sasrec_shared": ("sasrec", settings(shared_embedding=True, every_position=True)),
    "gru4rec": ("gru4rec", settings(num_layers=1)),
    "bert4rec": ("bert4rec", settings(optimizer="adamw")),
}  # fmt: skip
LIGR = settings(block="ligr", init_std=1.0)


def built(kind: str, config: SequenceConfig, seed: int = 0) -> SequenceModel:
    torch.manual_seed(seed)
    return build_sequence_model(kind, NUM_ITEMS, LENGTH, config)


def trained(
    kind: str, config: SequenceConfig, seed: int = 0
) -> tuple[SequenceModel, Fitted, list[dict[str, float]]]:
    model = built(kind, config, seed)
    rows = sequences_of(cycle(), INDEX.item_id_I, LENGTH)
    curves: list[dict[str, float]] = []
    fitted = fit(
        model, rows, rows, INDEX, config, lambda metrics, _: curves.append(metrics), Keeping()
    )
    return model, fitted, curves


def first_scores(model: SequenceModel, histories: list[list[int]]) -> torch.Tensor:
    frame = pl.DataFrame(
        {"history": [[int(INDEX.item_id_I[i]) for i in h] for h in histories],
         "target": [5] * len(histories)}
    )  # fmt: skip
    batches = scores(model, sequences_of(frame, INDEX.item_id_I, LENGTH), batch_size=10)
    return torch.cat([score_BI for score_BI, _ in batches])


@pytest.mark.parametrize("arm", ARMS)
def test_a_rule_without_exceptions_is_learned_perfectly(arm: str) -> None:
    kind, config = ARMS[arm]
    model, _, curves = trained(kind, settings(**{**vars(config), "patience": 15}))
    test = cycle().sample(fraction=1.0, shuffle=True, seed=4)
    rows = sequences_of(test, INDEX.item_id_I, LENGTH)
    table = predictions_of(test, scores(model, rows, 10), INDEX, top_k=3)
    assert (
        evaluate_predictions(table, ITEMS, popularity_alone(table, ITEMS), (1, 5, 10))["HR@1"]
        == 1.0
    )
    assert curves[-1]["train/loss"] < curves[0]["train/loss"]


@pytest.mark.parametrize("exclude_history", [False, True])
def test_the_epoch_is_chosen_by_the_ranking_that_is_answered(exclude_history: bool) -> None:
    config, curves = settings(max_epochs=3, patience=None), list[dict[str, float]]()
    model, train = built("sasrec", config), cycle()
    # Half of the valid targets stand in their history: excluded they are missed, ranked often hit.
    last = pl.col("history").list.last()
    valid = train.with_columns(
        target=pl.when(pl.col("example_id") % 2 == 0).then("target").otherwise(last)
    )
    rows = [sequences_of(frame, INDEX.item_id_I, LENGTH) for frame in (train, valid)]
    excluded = valid["history"] if exclude_history else None
    log = lambda metrics, _: curves.append(metrics)  # noqa: E731
    fitted = fit(model, *rows, INDEX, config, log, Keeping(), excluded)
    table = predictions_of(
        valid, scores(model, rows[1], 10), INDEX, top_k=10, exclude_history=exclude_history
    )
    slices = popularity_alone(table, ITEMS)
    found = evaluate_predictions(table, ITEMS, slices, (10,))["NDCG@10"]
    assert curves[fitted.best_epoch - 1]["val/NDCG@10"] == pytest.approx(found, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("sasrec", settings(init_std=1.0)),
        ("sasrec", LIGR),
        ("sasrec", settings(init_std=1.0, block="ligr", positions_from="newest")),
        ("sasrec", settings(init_std=1.0, reads_padding=True)),
        ("gru4rec", settings(init_std=1.0)),
    ],
)
def test_a_later_item_moves_no_earlier_state(kind: str, config: SequenceConfig) -> None:
    model = built(kind, config).eval()
    assert not isinstance(model, BERT4Rec)
    history_BL = torch.tensor([[0, 1, 2, 3, 4]])
    changed_BL = torch.tensor([[0, 1, 2, 9, 4]])
    state_BLD, changed_BLD = model(history_BL), model(changed_BL)
    torch.testing.assert_close(state_BLD[:, :3], changed_BLD[:, :3])
    for place in (3, 4):
        assert (state_BLD[:, place] - changed_BLD[:, place]).abs().max() > 1e-3


def test_bert4rec_sees_both_sides() -> None:
    model = built("bert4rec", settings(init_std=1.0)).eval()
    assert isinstance(model, BERT4Rec)
    state_BPD = model(torch.tensor([[0, 1, 2, 3, 4]]))
    changed_BPD = model(torch.tensor([[0, 1, 2, 9, 4]]))
    assert ((state_BPD - changed_BPD).abs().amax(dim=2) > 1e-4).all()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        *((kind, {}) for kind in KINDS),
        ("sasrec", {"block": "ligr", "positions_from": "newest"}),
        ("sasrec", {"reads_padding": True}),
    ],
)
def test_padding_and_neighbours_in_the_batch_change_no_score(
    kind: str, changes: dict[str, Any]
) -> None:
    model = built(kind, settings(init_std=1.0, dropout=0.5, **changes))
    histories = [[3], [1, 2, 3, 4, 5], [7, 7], [0, 11, 4]]
    together = first_scores(model, histories)
    for row, history in enumerate(histories):
        alone = model.next_states(torch.tensor([history]), torch.tensor([len(history)]))
        weight_ID, bias_I = model.output()
        # Float sums over rows of another length: the fifth digit may differ.
        expected = torch.nn.functional.linear(alone, weight_ID, bias_I)[0]
        torch.testing.assert_close(together[row], expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_spread_every_matrix_has_that_of_xavier(kind: str) -> None:
    torch.manual_seed(0)
    config = settings(init_std=None, hidden_size=64, feedforward_size=128, shared_embedding=False)
    model = build_sequence_model(kind, 900, 50, config)
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    assert matrices
    for weight in matrices:
        assert weight.std().item() == pytest.approx((2 / sum(weight.shape)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_dropped_numbers_of_item_vectors_are_the_same_in_reading_and_answering(kind: str) -> None:
    config = settings(init_std=1.0, hidden_size=64, shared_embedding=True)
    model = build_sequence_model(kind, 900, LENGTH, config).train()
    kept_ID = model.items.weight.detach().clone()
    with _dropped_vectors(model.items, 0.25):
        with parametrize.cached():
            read_ID, answered_ID = model.items(torch.arange(900)), model.output()[0]
        assert torch.equal(read_ID, answered_ID[:900])
        dropped_ID = read_ID == 0
        assert dropped_ID.float().mean().item() == pytest.approx(0.25, abs=0.01)
        torch.testing.assert_close(read_ID, kept_ID[:900].masked_fill(dropped_ID, 0.0) / 0.75)
        with parametrize.cached():
            assert not torch.equal(model.items(torch.arange(900)), read_ID)
        assert torch.equal(model.eval().items.weight, kept_ID)
    assert torch.equal(model.train().items.weight, kept_ID)


def test_a_model_trained_with_dropped_vectors_has_the_weights_of_one_without() -> None:
    """Whoever loads them, such as the soft tokens of LLaRA, needs to know nothing of it."""
    kind, config = ARMS["sasrec_rectools"]
    model, _, _ = trained(kind, replace(config, max_epochs=1))
    assert list(model.state_dict()) == list(built(kind, config).state_dict())
    assert type(model.items) is torch.nn.Embedding


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_the_history_matters(kind: str) -> None:
    first, second = first_scores(built(kind, settings(init_std=1.0)), [[1, 2, 3], [2, 1, 3]])
    assert (first - second).abs().max() > 1e-4


@pytest.mark.parametrize("arm", ["sasrec_bce", "gru4rec", "bert4rec"])
def test_equal_seeds_give_equal_weights_and_others_do_not(arm: str) -> None:
    kind, config = ARMS[arm]
    config = settings(**{**vars(config), "max_epochs": 2, "dropout": 0.2})
    first, second, other = (trained(kind, config, seed)[0].state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


@pytest.mark.long
@pytest.mark.parametrize("arm", ARMS)
def test_training_stopped_after_any_epoch_goes_on_to_the_same_weights(arm: str) -> None:
    kind, config = ARMS[arm]
    config = settings(**{**vars(config), "max_epochs": 9, "patience": 4, "dropout": 0.2})
    rows = sequences_of(cycle(), INDEX.item_id_I, LENGTH)
    saved: list[dict[str, Any]] = []
    curve: list[dict[str, float]] = []
    model = built(kind, config)
    whole = fit(
        model, rows, rows, INDEX, config,
        lambda metrics, _: curve.append(metrics),
        Keeping(lambda state: saved.append(deepcopy(state))),
    )  # fmt: skip
    assert len(saved) == whole.num_epochs > 2
    for stopped in (saved[0], saved[1], saved[-1]):
        again = built(kind, config, seed=5)
        rest: list[dict[str, float]] = []
        found = fit(
            again, rows, rows, INDEX, config,
            lambda metrics, _, rest=rest: rest.append(metrics), Keeping(saved=deepcopy(stopped)),
        )  # fmt: skip
        assert found == whole
        assert rest == curve[stopped["epoch"] :]
        for name, value in model.state_dict().items():
            assert torch.equal(value, again.state_dict()[name])


@pytest.mark.long
def test_training_stopped_inside_an_epoch_goes_on_to_the_same_weights() -> None:
    config = settings(max_epochs=4, dropout=0.2, batch_size=3)
    rows = sequences_of(cycle(), INDEX.item_id_I, LENGTH)
    model = built("bert4rec", config)
    saved: list[dict[str, Any]] = []
    whole = fit(
        model, rows, rows, INDEX, config, lambda *_: None,
        Keeping(lambda state: saved.append(deepcopy(state)), is_due=lambda: True),
    )  # fmt: skip
    assert len(saved) == whole.num_steps + whole.num_epochs
    per_epoch = whole.num_steps // whole.num_epochs
    # After the second step, at the end of an epoch before its validation, and in the third epoch.
    for number in (1, per_epoch - 1, 2 * per_epoch + 3):
        again = built("bert4rec", config, seed=5)
        found = fit(
            again,
            rows,
            rows,
            INDEX,
            config,
            lambda *_: None,
            Keeping(saved=deepcopy(saved[number])),
        )
        assert found == whole
        for name, value in model.state_dict().items():
            assert torch.equal(value, again.state_dict()[name])


def test_training_stops_when_valid_stops_rising_and_of_equal_epochs_keeps_the_latest() -> None:
    config = settings(patience=3, learning_rate=1e-12)  # nothing changes: only epoch 1 is better
    _, fitted, curves = trained("sasrec", config)
    assert (fitted.best_epoch, fitted.num_epochs, fitted.num_steps) == (4, 4, 12)
    assert [v.step for v in fitted.validations] == [3, 6, 9, 12]
    assert [set(row) for row in curves] == [{"train/loss", "val/NDCG@10"}] * 4


def test_the_kept_weights_are_those_of_the_best_epoch() -> None:
    model, fitted, curves = trained("sasrec", settings(max_epochs=12, learning_rate=0.3))
    best = max(row["val/NDCG@10"] for row in curves)
    assert curves[fitted.best_epoch - 1]["val/NDCG@10"] == best
    rows = sequences_of(cycle(), INDEX.item_id_I, LENGTH)
    table = predictions_of(cycle(), scores(model, rows, 16), INDEX, top_k=NUM_ITEMS)
    assert evaluate_predictions(table, ITEMS, popularity_alone(table, ITEMS), (1, 5, 10))[
        "NDCG@10"
    ] == pytest.approx(best)


def test_bert4rec_hides_what_the_settings_say() -> None:
    cloze = ClozeConfig(mask_prob=0.6, last_only_prob=0.25)
    model = built("bert4rec", settings(cloze=cloze))
    assert isinstance(model, BERT4Rec)
    length_B = torch.full((4000,), 4)
    item_BP = torch.tensor([0, 1, 2, 3, 4, NUM_ITEMS]).expand(4000, 6)  # target at 4, padding at 5
    hidden_BP = model._places_to_hide(length_B, item_BP)
    assert hidden_BP.any(dim=1).all() and not hidden_BP[:, 5].any()
    # A share of 0.25 hides the target only; 0.6 of the places otherwise; 0.4^5 = 0.01 had none.
    assert hidden_BP[:, 0].double().mean() == pytest.approx(0.75 * 0.6, abs=0.04)
    assert hidden_BP[:, 4].double().mean() == pytest.approx(0.25 + 0.75 * (0.6 + 0.01), abs=0.04)


def test_bert4rec_learns_from_the_hidden_places_and_their_items() -> None:
    model = built("bert4rec", settings(cloze=ClozeConfig(mask_prob=1.0, last_only_prob=0.0)))
    history_BL = torch.tensor([[1, 2, NUM_ITEMS], [3, NUM_ITEMS, NUM_ITEMS]])
    found = model.training_states(history_BL, torch.tensor([2, 1]), torch.tensor([7, 8]))
    assert found[1].tolist() == [1, 2, 7, 3, 8] and found[0].shape == (5, 16)


@pytest.mark.parametrize("kind", ["sasrec", "gru4rec"])
def test_a_shared_embedding_scores_items_by_their_own_vectors(kind: str) -> None:
    model = built(kind, settings(shared_embedding=True, init_std=1.0)).eval()
    assert not isinstance(model, BERT4Rec)
    state_D = model(torch.tensor([[3, 1]]))[0, 1].detach()
    by_hand = [float(state_D @ model.items.weight[item].detach()) for item in range(NUM_ITEMS)]
    assert first_scores(model, [[3, 1]])[0].tolist() == pytest.approx(by_hand, abs=1e-5)
    assert not any(name.startswith("answers") for name in model.state_dict())


def test_an_empty_valid_split_is_refused() -> None:
    rows = sequences_of(cycle(), INDEX.item_id_I, LENGTH)
    none = sequences_of(cycle()[:0], INDEX.item_id_I, LENGTH)
    with pytest.raises(ValueError, match="the valid split has no rows"):
        fit(built("sasrec", settings()), rows, none, INDEX, settings(), lambda *_: None, Keeping())
