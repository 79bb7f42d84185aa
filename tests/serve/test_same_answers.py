"""What a server answers is what task=recommend answers, whatever was batched together."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from toys import Compose

import hatllm
from hatllm.serve.app import build_app
from hatllm.serve.fleet import Fleet
from hatllm.serve.loading import load_run
from hatllm.serve.service import Service

pytestmark = pytest.mark.long

HISTORIES = [["Red Boat"], ["Blue Lamp", "Old Book"], ["Tiny Bicycle", "New Boat", "Red Lamp"],
             ["Grand Book"], ["Old Boat", "Old Boat"]] * 2  # fmt: skip


@pytest.fixture(scope="module")
def client(finished_once: Path, compose_config: Compose) -> Iterator[TestClient]:
    words = ["task=serve", f"task.run_folder={finished_once}", "task.serve.max_wait_ms=300"]
    config = compose_config(*words)
    fleet = Fleet([finished_once], lambda folder: load_run(folder, config, []))
    fleet.start()
    assert fleet.failure is None
    assert config.task.serve is not None
    service = Service.of(fleet, config.task.serve, may_reload=True)
    yield TestClient(build_app(service, None), base_url="http://127.0.0.1")
    service.batcher.close()


def test_ten_at_once_get_what_each_gets_alone_without_a_server(
    client: TestClient, finished_once: Path
) -> None:
    recommender = hatllm.load(finished_once)
    alone = [recommender.recommend(history, k=5) for history in HISTORIES]

    def ask(history: list[str]) -> list[tuple[int, float]]:
        answer = client.post("/v1/recommend", json={"history": history, "k": 5}).json()
        sizes.append(answer["batch_size"])
        return [(one["item_id"], one["log_prob"]) for one in answer["recommendations"]]

    sizes: list[int] = []
    with ThreadPoolExecutor(len(HISTORIES)) as pool:
        together = list(pool.map(ask, HISTORIES))
    assert max(sizes) > 1
    for served, expected in zip(together, alone, strict=True):
        assert [item for item, _ in served] == [answer.item_id for answer in expected]
        assert [value for _, value in served] == pytest.approx(
            [answer.log_prob for answer in expected], abs=1e-5
        )  # sums over a batch are added up in another order


def test_a_reload_answers_as_before_and_refuses_what_lies_elsewhere(
    client: TestClient, finished_once: Path
) -> None:
    before = client.post("/v1/recommend", json={"history": ["Red Boat"]}).json()
    assert client.post("/v1/reload", json={}).json()["run"] == finished_once.name
    after = client.post("/v1/recommend", json={"history": ["Red Boat"]}).json()
    assert after["recommendations"] == before["recommendations"]
    for folder in ("..", ".", "../done", "/etc", "a/../../b", "done/../done", "nothing", "..\\x"):
        answer = client.post("/v1/reload", json={"folder": folder})
        assert answer.status_code in (404, 422)
        assert answer.json()["error"]["field"] == "folder"


@pytest.mark.parametrize(
    ("asked", "word"), [({"beam_width": 24}, "decode.beam_width=24"),
                        ({"temperature": 3}, "decode.temperature=3.0")],
)  # fmt: skip
def test_another_search_answers_as_a_run_loaded_with_it_and_for_one_request_only(
    client: TestClient, finished_once: Path, asked: dict[str, float], word: str
) -> None:
    def ask(**more: float) -> list[float]:
        body = {"history": HISTORIES[1], "k": 5, **more}
        answer = client.post("/v1/recommend", json=body).json()
        return [one["log_prob"] for one in answer["recommendations"]]

    before = ask()
    other = hatllm.load(finished_once, [word]).recommend(HISTORIES[1], k=5)
    assert ask(**asked) == pytest.approx([one.log_prob for one in other], abs=1e-5)
    assert ask() == before


@pytest.mark.parametrize("mask", ["causal", "hatllm_segments", "CFIF"])
def test_another_mask_answers_and_explains_as_the_library_does_under_it(
    client: TestClient, finished_once: Path, mask: str
) -> None:
    body = {"history": HISTORIES[1], "k": 5}
    own = client.post("/v1/recommend", json=body).json()["recommendations"]
    answer = client.post("/v1/recommend", json={**body, "mask": mask}).json()["recommendations"]
    expected = hatllm.load(finished_once).recommend(HISTORIES[1], k=5, mask=mask)
    assert [one["log_prob"] for one in answer] == pytest.approx(
        [one.log_prob for one in expected], abs=1e-5
    )
    assert answer != own
    asked = {"history": HISTORIES[1], "title": answer[0]["title"], "mask": mask}
    why = client.post("/v1/why", json=asked).json()
    assert why["log_prob"] == pytest.approx(answer[0]["log_prob"], abs=1e-4)
    letters = "".join(layer["pattern"][0].upper() for layer in why["layers"])
    assert letters == {"causal": "FFFF", "hatllm_segments": "IFFC"}.get(mask, mask)
    assert client.post("/v1/recommend", json=body).json()["recommendations"] == own


@pytest.mark.parametrize("mask", ["no_such_mask", "II", "custom", "_base", "../mask/causal"])
def test_a_mask_that_does_not_fit_is_refused(client: TestClient, mask: str) -> None:
    for path, more in (("recommend", {}), ("why", {"title": "Red Boat"})):
        answer = client.post(f"/v1/{path}", json={"history": ["Red Boat"], "mask": mask, **more})
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, "mask")


def test_only_block_and_history_are_kept_to(client: TestClient, finished_once: Path) -> None:
    history = ["Red Boat", "Blue Lamp"]
    body = {"history": history, "only": ["Red Boat", "Old Book", "Grand Book", "New Lamp"],
            "block": ["Old Book"], "exclude_history": True}  # fmt: skip
    answer = client.post("/v1/recommend", json=body).json()["recommendations"]
    assert {one["title"] for one in answer} == {"Grand Book", "New Lamp"}
    scored = client.post(
        "/v1/score", json={"history": history, "titles": ["New Lamp", "Grand Book"]}
    ).json()["scores"]
    assert [one["title"] for one in scored] == [one["title"] for one in answer]
    assert [one["log_prob"] for one in scored] == pytest.approx(
        [one["log_prob"] for one in answer], abs=1e-4
    )
